import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import type { Snapshot } from "../src/index.js";
import { BOB, FakeSocket, joined, joinSuccess, person, settled, STATE } from "./fake_server.js";

beforeEach(() => {
  vi.useFakeTimers();
  FakeSocket.all = [];
});
afterEach(() => {
  vi.useRealTimers();
});

const OF_A_USER = { role: "user", livekit_moderation: { may_publish: ["camera", "microphone"] } } as const;

describe("a snapshot", () => {
  test("is the same until something changes, and then another one is told of", async () => {
    const { client, socket } = await joined();
    const seen: Snapshot[] = [];
    const stop = client.subscribe(() => seen.push(client.getSnapshot()));
    const before = client.getSnapshot();
    for (const nothing of [{ message: "left", id: "nobody", reason: "quit" }, { message: "hand_lowered" }]) {
      socket.tell("control", nothing);
    }
    socket.tell("echo", { message: "pong" });
    expect(client.getSnapshot()).toBe(before);
    expect(seen).toEqual([]);
    socket.tell("control", { message: "left", id: "bob", reason: "quit" });
    expect(client.getSnapshot()).not.toBe(before);
    expect(before.people.has("bob")).toBe(true);
    expect(seen).toEqual([client.getSnapshot()]);
    stop();
    socket.tell("control", { message: "joined", id: "bob", control: BOB });
    expect(seen).toHaveLength(1);
  });

  test("has everybody else, as they come, change and go", async () => {
    const { client, socket } = await joined();
    expect([...client.getSnapshot().people]).toEqual([["bob", BOB]]);
    socket.tell("control", { message: "joined", id: "carol", control: { ...BOB, display_name: "Carol" } });
    socket.tell("control", { message: "update", id: "bob", control: { ...BOB, hand_is_up: true } });
    expect(client.getSnapshot().people.get("bob")?.hand_is_up).toBe(true);
    expect(client.getSnapshot().people.get("carol")?.display_name).toBe("Carol");
    socket.tell("control", { message: "left", id: "bob", reason: "timeout" });
    expect([...client.getSnapshot().people.keys()]).toEqual(["carol"]);
  });

  test("has oneself: hand, role and rights", async () => {
    const { client, socket } = await joined({ ...OF_A_USER, hand_updated_at: "2026-03-01T08:00:00.000Z" });
    expect(client.getSnapshot().me).toEqual({
      id: "alice",
      display_name: "Alice",
      role: "user",
      hand_is_up: false,
      hand_updated_at: "2026-03-01T08:00:00.000Z",
      may_publish: ["camera", "microphone"],
    });
    socket.tell("control", { message: "hand_raised" });
    socket.tell("livekit_moderation", { message: "permissions_changed", may_publish: ["camera"], cause: "restriction" });
    expect(client.getSnapshot().me).toMatchObject({
      hand_is_up: true,
      hand_updated_at: "2026-03-01T09:30:00.123Z",
      may_publish: ["camera"],
    });
    const before = client.getSnapshot();
    socket.tell("livekit_moderation", { message: "permissions_changed", may_publish: ["camera"], cause: "role" });
    expect(client.getSnapshot()).toBe(before);
  });

  test("says whether microphones are locked", async () => {
    const { client, socket } = await joined();
    expect(client.getSnapshot().microphoneRestriction).toEqual({ type: "disabled" });
    const unrestricted_participants = ["bob"];
    socket.tell("livekit", { message: "microphone_restrictions_enabled", unrestricted_participants });
    expect(client.getSnapshot().microphoneRestriction).toEqual({ type: "enabled", unrestricted_participants });
    socket.tell("livekit", { message: "microphone_restrictions_disabled" });
    expect(client.getSnapshot().microphoneRestriction).toEqual({ type: "disabled" });
  });

  test("is kept while reconnecting, and is another meeting's no longer after that", async () => {
    const { client, socket } = await joined();
    socket.end(1006);
    expect(client.getSnapshot()).toMatchObject({ connection: { state: "reconnecting" }, state: STATE });
    await vi.advanceTimersByTimeAsync(100);
    FakeSocket.last.open();
    FakeSocket.last.tell("control", joinSuccess({ participants: [], livekit_moderation: { ...STATE, version: 1 } }));
    expect(client.getSnapshot()).toMatchObject({ connection: { state: "joined" }, state: { version: 1 } });
    expect(client.getSnapshot().people.size).toBe(0);
  });
});

describe("the state that moderators watch", () => {
  test("is asked for at joining, changes by what is told, and leaves alone who did not change", async () => {
    const { client, socket } = await joined();
    expect(socket.commands("watch")).toEqual([{ action: "watch", enabled: true }]);
    socket.answer({ message: "state", ...STATE, outcomes: undefined, repaired_later: undefined, command_id: undefined });
    socket.answer();
    const before = client.getSnapshot().state;
    const bob = person("bob", { may_publish: [] });
    const changed = { participants: [bob, { participant: "carol", gone: true }, person("dave")], bans: ["carol"], presenter: "bob" };
    socket.tell("livekit_moderation", { message: "state_changed", version: 8, changed });
    const after = client.getSnapshot().state;
    expect(after).toEqual({
      ...STATE,
      version: 8,
      bans: ["carol"],
      presenter: "bob",
      participants: [STATE.participants[0], bob, person("dave")],
    });
    expect(after?.participants[0]).toBe(before?.participants[0]);
    expect(after?.restrictions).toBe(before?.restrictions);
    expect(before).toEqual(STATE);
    socket.tell("livekit_moderation", { message: "state_changed", version: 9, changed: { gone: ["presenter"] } });
    expect(client.getSnapshot().state).not.toHaveProperty("presenter");
  });

  test("has one's own rights", async () => {
    const { client, socket } = await joined();
    expect(client.getSnapshot().me?.may_publish).toEqual(["camera", "microphone"]);
    const changed = { participants: [person("alice", { may_publish: [] })] };
    socket.tell("livekit_moderation", { message: "state_changed", version: 8, changed });
    expect(client.getSnapshot().me?.may_publish).toEqual([]);
  });

  test("is asked for as a whole, once, when a change is missing", async () => {
    const { client, socket } = await joined();
    socket.answer();
    await settled();
    const before = client.getSnapshot();
    socket.tell("livekit_moderation", { message: "state_changed", version: 9, changed: { bans: ["x"] } });
    socket.tell("livekit_moderation", { message: "state_changed", version: 10, changed: { bans: ["y"] } });
    expect(client.getSnapshot()).toBe(before);
    expect(socket.commands("get_state")).toHaveLength(1);
    socket.tell("livekit_moderation", { message: "state", ...STATE, version: 10, bans: ["y"] });
    socket.answer();
    await settled();
    expect(client.getSnapshot().state).toMatchObject({ version: 10, bans: ["y"] });
    socket.tell("livekit_moderation", { message: "state_changed", version: 10, changed: { bans: ["late"] } });
    socket.tell("livekit_moderation", { message: "state_changed", version: 11, changed: { bans: [] } });
    expect(client.getSnapshot().state).toMatchObject({ version: 11, bans: [] });
    expect(socket.commands("get_state")).toHaveLength(1);
  });

  test("is asked for again when the server could not give it", async () => {
    const { socket } = await joined();
    socket.answer({ error: "unavailable" });
    await vi.advanceTimersByTimeAsync(2_000);
    expect(socket.commands("watch")).toHaveLength(2);
    socket.answer();
    socket.tell("echo", { message: "pong" });
    await vi.advanceTimersByTimeAsync(4_000);
    expect(socket.commands("watch")).toHaveLength(2);
  });

  test("comes with the role, and goes with it", async () => {
    const { client, socket } = await joined(OF_A_USER);
    expect(client.getSnapshot()).not.toHaveProperty("state");
    expect(socket.commands("watch")).toHaveLength(0);
    socket.tell("control", { message: "role_updated", new_role: "moderator" });
    expect(socket.commands("watch")).toHaveLength(1);
    socket.tell("livekit_moderation", { message: "state", ...STATE });
    expect(client.getSnapshot()).toMatchObject({ me: { role: "moderator" }, state: STATE });
    socket.tell("control", { message: "role_updated", new_role: "user" });
    expect(client.getSnapshot()).not.toHaveProperty("state");
    expect(client.getSnapshot().me?.role).toBe("user");
  });

  test("is not kept for who does not wish it", async () => {
    const { client, socket } = await joined({}, { watch: false });
    expect(client.getSnapshot()).not.toHaveProperty("state");
    expect(socket.commands("watch")).toHaveLength(0);
    const before = client.getSnapshot();
    socket.tell("livekit_moderation", { message: "state", ...STATE });
    expect(client.getSnapshot()).toBe(before);
    client.watch(true);
    client.watch(true);
    expect(socket.commands("watch")).toEqual([{ action: "watch", enabled: true }]);
    socket.tell("livekit_moderation", { message: "state", ...STATE });
    expect(client.getSnapshot().state).toEqual(STATE);
    client.watch(false);
    expect(client.getSnapshot()).not.toHaveProperty("state");
    expect(socket.commands("watch")[1]).toEqual({ action: "watch", enabled: false });
  });
});

describe("credentials", () => {
  const MOVED = { room: "standup:red", token: "t2", public_url: "wss://lk.example.org" };

  test("are told when they are others: by joining, by moving, by coming back", async () => {
    const { client, socket } = await joined();
    const told: string[] = [];
    let changes = 0;
    client.on("credentials", ({ token }) => told.push(token));
    client.subscribe(() => (changes += 1));
    expect(client.credentials?.token).toBe("t1");
    socket.tell("livekit", { message: "credentials", ...MOVED });
    expect(client.credentials).toEqual(MOVED);
    expect(changes).toBe(1);
    socket.end(1012);
    expect(client.credentials).toEqual(MOVED);
    await vi.advanceTimersByTimeAsync(100);
    FakeSocket.last.open();
    FakeSocket.last.tell("control", joinSuccess());
    expect(told).toEqual(["t2", "t1"]);
  });

  test("are asked for until LiveKit answers, if it did not at joining", async () => {
    const { livekit: _, ...without } = joinSuccess();
    const { client, socket } = await joined({ ...without, livekit: undefined } as object);
    socket.answer();
    expect(client.credentials).toBeUndefined();
    expect(client.getSnapshot()).not.toHaveProperty("microphoneRestriction");
    await vi.advanceTimersByTimeAsync(2_000);
    expect(socket.commands("create_new_access_token")).toHaveLength(1);
    socket.answer({ error: "livekit_unavailable" });
    await vi.advanceTimersByTimeAsync(2_000);
    expect(socket.commands("create_new_access_token")).toHaveLength(2);
    socket.tell("livekit", { message: "credentials", ...MOVED }, socket.sent.at(-1)?.transaction_id);
    expect(client.credentials).toEqual(MOVED);
    await vi.advanceTimersByTimeAsync(4_000);
    expect(socket.commands("create_new_access_token")).toHaveLength(2);
  });
});

describe("listeners", () => {
  test("are told of events by namespace and name, and of every frame", async () => {
    const { client, socket } = await joined();
    const told: string[] = [];
    const stop = client.on("livekit_moderation/muted", ({ moderator }) => told.push(`by ${moderator}`));
    client.on("livekit/force_muted", ({ moderator }) => told.push(`forced by ${moderator}`));
    client.on("frame", ({ payload }) => told.push(payload.message));
    const muted = { message: "muted", moderator: "carol", sources: ["microphone"] };
    socket.tell("livekit", { message: "force_muted", moderator: "carol" });
    socket.tell("livekit_moderation", muted);
    stop();
    socket.tell("livekit_moderation", muted);
    expect(told).toEqual(["forced by carol", "force_muted", "by carol", "muted", "muted"]);
  });

  test("that throw keep nobody else from being told", async () => {
    const { client, socket } = await joined();
    const thrown: unknown[] = [];
    vi.spyOn(globalThis, "queueMicrotask").mockImplementation((callback) => {
      try {
        callback();
      } catch (error) {
        thrown.push(error);
      }
    });
    const error = new Error("a listener's own");
    let told = 0;
    client.on("control/left", () => {
      throw error;
    });
    client.on("control/left", () => (told += 1));
    socket.tell("control", { message: "left", id: "bob", reason: "quit" });
    expect(told).toBe(1);
    expect(thrown).toEqual([error]);
  });

  test("are told of what is so already", async () => {
    const { client, socket } = await joined();
    let people = -1;
    client.on("control/left", () => (people = client.getSnapshot().people.size));
    socket.tell("control", { message: "left", id: "bob", reason: "quit" });
    expect(people).toBe(0);
  });

  test("of an event that this version does not know are not needed", async () => {
    const { client, socket } = await joined();
    const before = client.getSnapshot();
    socket.tell("livekit_moderation", { message: "of_a_later_version" });
    expect(client.getSnapshot()).toBe(before);
  });
});
