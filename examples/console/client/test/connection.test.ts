import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { backoffMs } from "../src/connection.js";
import { AccessDenied, connect, type Connection, ConnectionEnded, SignalingError } from "../src/index.js";
import { connecting, FakeSocket, joined, joinSuccess, settled } from "./fake_server.js";

beforeEach(() => {
  vi.useFakeTimers();
  FakeSocket.all = [];
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("joining", () => {
  test("offers the protocol and the ticket, and joins with the extension", async () => {
    await connecting({ displayName: "Bob" });
    const socket = FakeSocket.last;
    expect(socket.url).toBe("wss://meet.example.org/signaling");
    expect(socket.protocols).toEqual(["opentalk-signaling-json-v1.0", "ticket#ticket"]);
    expect(socket.sent).toEqual([]);
    socket.open();
    const join = { action: "join", display_name: "Bob", extensions: ["livekit_moderation"] };
    expect(socket.sent).toEqual([{ namespace: "control", payload: join }]);
  });

  test("is told, waited for and seen", async () => {
    const told: Connection[] = [];
    const client = await connecting();
    client.on("connection", (connection) => told.push(connection));
    const joining = client.whenJoined();
    expect(client.getSnapshot().connection).toEqual({ state: "connecting", attempt: 1 });
    FakeSocket.last.open();
    FakeSocket.last.tell("control", joinSuccess());
    expect((await joining).id).toBe("alice");
    expect((await client.whenJoined()).id).toBe("alice");
    expect(told).toEqual([{ state: "joined" }]);
  });

  test("is given up by an abort, and by the end", async () => {
    const client = await connecting();
    const controller = new AbortController();
    const given_up = client.whenJoined({ signal: controller.signal });
    const ended = client.whenJoined();
    controller.abort(new Error("enough"));
    client.close();
    await expect(given_up).rejects.toThrow("enough");
    await expect(ended).rejects.toThrow(ConnectionEnded);
    await expect(client.whenJoined()).rejects.toThrow("left");
    expect(() => client.whenJoined({ signal: controller.signal })).toThrow("enough");
  });

  test("needs a WebSocket", () => {
    vi.stubGlobal("WebSocket", undefined);
    expect(() => connect({ url: "wss://x", ticket: () => "t" })).toThrow(SignalingError);
  });

  test("uses the global WebSocket", async () => {
    vi.stubGlobal("WebSocket", FakeSocket);
    connect({ url: "wss://x", ticket: () => "t" });
    await settled();
    expect(FakeSocket.all).toHaveLength(1);
  });
});

describe("coming back", () => {
  test.each([1001, 1006, 1008, 1009, 1011, 1012])("after %i, with another ticket", async (code) => {
    const ticket = vi.fn<() => string>().mockReturnValueOnce("first").mockReturnValueOnce("second");
    const { client, socket } = await joined({}, { ticket });
    socket.end(code);
    const retryAt = Date.now() + 100;
    const loss = { cause: "closed", code };
    expect(client.getSnapshot().connection).toEqual({ state: "reconnecting", attempt: 2, retryAt, loss });
    await vi.advanceTimersByTimeAsync(100);
    expect(FakeSocket.all).toHaveLength(2);
    expect(FakeSocket.last.protocols).toContain("ticket#second");
    expect(client.getSnapshot().connection).toEqual({ state: "reconnecting", attempt: 2, loss });
    FakeSocket.last.open();
    FakeSocket.last.tell("control", joinSuccess());
    expect(client.getSnapshot().connection).toEqual({ state: "joined" });
  });

  test("begins to count anew once a connection has lasted", async () => {
    const attempts: number[] = [];
    const { socket } = await joined({}, { backoffMs: (attempt) => attempts.push(attempt) });
    socket.end(1006);
    await vi.advanceTimersByTimeAsync(10);
    FakeSocket.last.end(1006);
    await vi.advanceTimersByTimeAsync(10);
    FakeSocket.last.open();
    FakeSocket.last.tell("control", joinSuccess());
    FakeSocket.last.end(1006);
    await vi.advanceTimersByTimeAsync(10);
    FakeSocket.last.open();
    FakeSocket.last.tell("control", joinSuccess());
    await vi.advanceTimersByTimeAsync(5_000);
    FakeSocket.last.end(1006);
    expect(attempts).toEqual([1, 2, 3, 1]);
  });

  test("takes longer, never the same, and 15 s at most", () => {
    vi.spyOn(Math, "random").mockReturnValueOnce(0).mockReturnValue(1);
    expect([1, 1, 2, 3, 6, 99].map(backoffMs)).toEqual([250, 500, 1_000, 2_000, 15_000, 15_000]);
  });

  test("takes longer when the server says that it is to be later", async () => {
    const attempts: number[] = [];
    await connecting({ backoffMs: (attempt) => attempts.push(attempt) });
    FakeSocket.last.open();
    FakeSocket.last.end(1013);
    expect(attempts).toEqual([3]);
  });

  test("needs no waiting when somebody says so, or the network is back", async () => {
    const listeners = new Map<string, () => void>();
    vi.stubGlobal("addEventListener", (name: string, listener: () => void) => listeners.set(name, listener));
    vi.stubGlobal("removeEventListener", (name: string) => listeners.delete(name));
    const { client, socket } = await joined();
    client.retryNow();
    expect(FakeSocket.all).toHaveLength(1);
    socket.end(1006);
    client.retryNow();
    client.retryNow();
    await settled();
    expect(FakeSocket.all).toHaveLength(2);
    expect(listeners.size).toBe(0);
    FakeSocket.last.end(1006);
    listeners.get("online")?.();
    await settled();
    expect(FakeSocket.all).toHaveLength(3);
    client.close();
    expect(listeners.size).toBe(0);
    client.retryNow();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(FakeSocket.all).toHaveLength(3);
  });

  test("goes on while nobody answers, which is all that browsers tell", async () => {
    const client = await connecting();
    FakeSocket.last.end(1006);
    expect(client.getSnapshot().connection).toMatchObject({ state: "connecting", attempt: 2, loss: { cause: "not_opened" } });
    await vi.advanceTimersByTimeAsync(100);
    expect(FakeSocket.all).toHaveLength(2);
  });

  test("is tried again after 10 s without having joined", async () => {
    const signals: AbortSignal[] = [];
    const ticket = (signal: AbortSignal): Promise<string> => {
      signals.push(signal);
      return signals.length === 1 ? new Promise(() => undefined) : Promise.resolve("ticket");
    };
    const client = await connecting({ ticket });
    await vi.advanceTimersByTimeAsync(10_000);
    expect(signals[0]?.aborted).toBe(true);
    expect(client.getSnapshot().connection).toMatchObject({ loss: { cause: "timed_out" } });
    await vi.advanceTimersByTimeAsync(100);
    expect(FakeSocket.all).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(FakeSocket.last.closedWith).toBe(4000);
    await vi.advanceTimersByTimeAsync(100);
    expect(FakeSocket.all).toHaveLength(2);
  });

  test("is tried again when there is no ticket for the moment", async () => {
    const error = new Error("503");
    const client = await connecting({ ticket: () => Promise.reject(error) });
    expect(client.getSnapshot().connection).toMatchObject({ state: "connecting", loss: { cause: "no_ticket", error } });
  });

  test("hears nothing more of a connection that was given up", async () => {
    const { client, socket } = await joined();
    await vi.advanceTimersByTimeAsync(15_000);
    expect(socket.closedWith).toBe(4000);
    socket.tell("moderation", { message: "banned" });
    socket.open();
    socket.end(1000);
    expect(client.getSnapshot().connection).toMatchObject({ state: "reconnecting", loss: { cause: "silent" } });
    expect(socket.commands("join")).toHaveLength(1);
  });

  test("is not begun with a ticket that comes too late", async () => {
    let resolve = (_: string): void => undefined;
    let reject = (_: Error): void => undefined;
    const client = await connecting({ ticket: () => new Promise((given) => (resolve = given)) });
    client.close();
    resolve("ticket");
    await settled();
    expect(FakeSocket.all).toHaveLength(0);
    const other = await connecting({ ticket: () => new Promise((_, failed) => (reject = failed)) });
    other.close();
    reject(new Error("aborted"));
    await settled();
    expect(other.getSnapshot().connection).toEqual({ state: "ended", reason: "left" });
  });
});

describe("a silent connection", () => {
  test("is pinged every 5 s, and lives as long as anything comes", async () => {
    const { client, socket } = await joined();
    for (let second = 0; second < 60; second += 10) {
      await vi.advanceTimersByTimeAsync(10_000);
      socket.tell("echo", { message: "pong" });
    }
    expect(socket.commands("ping")).toHaveLength(12);
    expect(client.getSnapshot().connection.state).toBe("joined");
  });

  test("is given up after two pings, without leaving", async () => {
    const { client, socket } = await joined();
    await vi.advanceTimersByTimeAsync(14_999);
    expect(client.getSnapshot().connection.state).toBe("joined");
    await vi.advanceTimersByTimeAsync(1);
    expect(client.getSnapshot().connection).toMatchObject({ state: "reconnecting", loss: { cause: "silent" } });
    expect(socket.closedWith).toBe(4000);
  });
});

describe("the end", () => {
  test.each([
    ["moderation", "kicked"],
    ["moderation", "banned"],
    ["control", "room_deleted"],
  ] as const)("is what %s/%s says, even if the close does not arrive", async (namespace, reason) => {
    for (const lose of [(socket: FakeSocket) => socket.end(1000), (socket: FakeSocket) => socket.end(1006)]) {
      const { client, socket } = await joined();
      socket.tell(namespace, { message: reason });
      lose(socket);
      expect(client.getSnapshot().connection).toEqual({ state: "ended", reason });
    }
    const { client, socket } = await joined();
    socket.tell(namespace, { message: reason });
    for (let second = 0; second < 15; second += 5) await vi.advanceTimersByTimeAsync(5_000);
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(FakeSocket.last).toBe(socket);
  });

  test("says who did it, if that was told", async () => {
    const { client, socket } = await joined();
    const removal = { message: "kicked", moderator: "carol", reason: "shouting" };
    socket.tell("livekit_moderation", removal);
    expect(client.getSnapshot().connection.state).toBe("joined");
    socket.tell("moderation", { message: "kicked" });
    socket.end(1000);
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "kicked", removal });
  });

  test("is a close with 1000 without a word: the same person came again", async () => {
    const { client, socket } = await joined();
    socket.end(1000);
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "taken_over" });
  });

  test("is leaving, by 1000", async () => {
    const { client, socket } = await joined();
    client.close();
    client.close();
    expect(socket.closedWith).toBe(1000);
    socket.tell("control", { message: "left", id: "bob", reason: "quit" });
    expect(client.getSnapshot().people.has("bob")).toBe(true);
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "left" });
    await settled();
    expect(vi.getTimerCount()).toBe(0);
  });

  test("is a person who gets no ticket", async () => {
    const error = new AccessDenied("you are not invited");
    const client = await connecting({ ticket: () => Promise.reject(error) });
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "access_denied", error });
    expect(vi.getTimerCount()).toBe(0);
  });

  test.each([400, 403, 404])("is a refusal with %i where that is known", async (status) => {
    const client = await connecting();
    FakeSocket.last.refuse(status);
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "refused", status });
  });

  test.each([400, 403, 404])("is a close with 4000 + %i", async (status) => {
    const client = await connecting();
    FakeSocket.last.open();
    FakeSocket.last.end(4000 + status);
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "refused", status });
  });

  test("is a second ticket in a row that is not taken", async () => {
    const client = await connecting();
    FakeSocket.last.refuse(401);
    expect(client.getSnapshot().connection.state).toBe("connecting");
    await vi.advanceTimersByTimeAsync(100);
    FakeSocket.last.refuse(503);
    await vi.advanceTimersByTimeAsync(100);
    FakeSocket.last.refuse(401);
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "refused", status: 401 });
  });

  test("is an address that is none", async () => {
    const error = new SyntaxError("not a URL");
    class Throwing extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        throw error;
      }
    }
    const client = await connecting({ WebSocket: Throwing });
    expect(client.getSnapshot().connection).toEqual({ state: "ended", reason: "refused", error });
  });
});
