import { afterEach, beforeEach, describe, expect, expectTypeOf, test, vi } from "vitest";

import { type Command, CommandRefused, type Commands, type Fields, NoAnswer } from "../src/index.js";
import type { Mute, Result } from "../src/index.js";
import { FakeSocket, joined, settled } from "./fake_server.js";

beforeEach(() => {
  vi.useFakeTimers();
  FakeSocket.all = [];
});
afterEach(() => {
  vi.useRealTimers();
});

const EVERYONE = { everyone_except: [] };

describe("a command", () => {
  test("is sent as it is called, and resolves to its result", async () => {
    const { client, socket } = await joined();
    const muting = client.mute({ participants: ["bob"], hold_s: 30 });
    const { namespace, payload, transaction_id } = socket.sent.at(-1) ?? {};
    expect({ namespace, payload }).toEqual({
      namespace: "livekit_moderation",
      payload: { action: "mute", participants: ["bob"], hold_s: 30 },
    });
    socket.tell("livekit_moderation", { message: "result", outcomes: [], repaired_later: [] }, 999);
    const outcomes = [{ participant: "bob", outcome: "muted" }];
    const result = { message: "result", command_id: "c7", action: "mute", outcomes, repaired_later: [] };
    socket.tell("livekit_moderation", result, transaction_id);
    expect(await muting).toEqual(result);
  });

  test("that was done for some resolves: its outcomes say for whom", async () => {
    const { client, socket } = await joined();
    const muting = client.mute(EVERYONE);
    const outcomes = [{ participant: "bob", outcome: "failed", error: "livekit_unavailable" }];
    socket.answer({ error: "livekit_unavailable", outcomes });
    expect((await muting).outcomes).toEqual(outcomes);
  });

  test("that was refused rejects, and says why", async () => {
    const { client, socket } = await joined();
    const muting = client.mute(EVERYONE);
    socket.answer({ error: "rate_limit_exceeded", detail: "too many", retry_after_s: 1.5 });
    const refusal = await muting.catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(CommandRefused);
    expect(refusal).toMatchObject({ name: "CommandRefused", code: "rate_limit_exceeded", detail: "too many", retryAfterS: 1.5 });
    expect(String(refusal)).toBe("CommandRefused: mute was refused: rate_limit_exceeded (too many)");
  });

  test("of control is answered by its first event, or an error", async () => {
    const { client, socket } = await joined();
    const raising = client.raiseHand();
    const id = socket.sent.at(-1)?.transaction_id;
    socket.tell("livekit", { message: "error", error: "livekit_unavailable" }, id);
    socket.tell("control", { message: "hand_raised" }, id);
    expect(await raising).toBeUndefined();
    const granting = client.grantModeratorRole({ target: "bob" });
    socket.tell("control", { message: "error", error: "nothing_to_do" }, socket.sent.at(-1)?.transaction_id);
    await expect(granting).rejects.toMatchObject({ code: "nothing_to_do", retryAfterS: undefined });
  });

  test("that asks is answered by what it asked for", async () => {
    const { client, socket } = await joined();
    const credentials = { room: "standup", token: "t2", public_url: "wss://lk.example.org" };
    const renewing = client.createNewAccessToken();
    socket.answer({ message: "credentials", ...credentials, command_id: undefined, outcomes: undefined, repaired_later: undefined }, "livekit");
    socket.answer();
    expect(await renewing).toEqual(credentials);
    expect(client.credentials).toEqual(credentials);

    const opening = client.requestPopoutStreamAccessToken();
    socket.answer();
    socket.answer({ message: "popout_stream_access_token", token: "p1" }, "livekit");
    expect(await opening).toBe("p1");

    const reading = client.getAudit({ limit: 10 });
    socket.answer({ message: "audit", entries: [] });
    expect(await reading).toEqual([]);

    const refused = client.getState();
    socket.answer({ error: "insufficient_permissions" });
    await expect(refused).rejects.toThrow("get_state was refused: insufficient_permissions");
  });
});

describe("no answer", () => {
  test("of what could not be sent: nothing was done", async () => {
    const { client, socket } = await joined();
    socket.end(1006);
    const before = socket.sent.length;
    await expect(client.mute(EVERYONE)).rejects.toMatchObject({ why: "not_joined", sent: false, commandId: undefined });
    expect(socket.sent).toHaveLength(before);
  });

  test("of what was sent when the connection broke: it may have been done", async () => {
    const { client, socket } = await joined();
    const muting = client.mute(EVERYONE);
    const told = client.stop({ source: "camera", participants: ["bob"] });
    socket.answer({ message: "action_taken", command_id: "c9" });
    socket.end(1012);
    await expect(muting).rejects.toMatchObject({ why: "connection_lost", sent: true, commandId: undefined });
    await expect(told).rejects.toMatchObject({ why: "connection_lost", sent: true, commandId: "c9" });
    await expect(told).rejects.toThrow("stop has no answer: connection_lost, it may have been carried out");
  });

  test("when we leave", async () => {
    const { client } = await joined();
    const muting = client.mute(EVERYONE);
    client.close();
    await expect(muting).rejects.toBeInstanceOf(NoAnswer);
  });

  test("in time, by the client's measure and by the command's own", async () => {
    const { client } = await joined({}, { commandTimeoutMs: 3_000, watch: false });
    const rejections: string[] = [];
    const note = (name: string) => (error: NoAnswer) => rejections.push(`${name} ${error.why} ${error.sent}`);
    client.mute(EVERYONE).catch(note("mute"));
    client.raiseHand({ timeoutMs: 50 }).catch(note("raise_hand"));
    await vi.advanceTimersByTimeAsync(50);
    expect(rejections).toEqual(["raise_hand timed_out true"]);
    await vi.advanceTimersByTimeAsync(2_950);
    expect(rejections).toEqual(["raise_hand timed_out true", "mute timed_out true"]);
  });

  test("since nobody waits any more", async () => {
    const { client, socket } = await joined();
    const controller = new AbortController();
    const muting = client.mute(EVERYONE, { signal: controller.signal });
    const reason = new Error("closed the dialogue");
    controller.abort(reason);
    await expect(muting).rejects.toBe(reason);
    socket.answer();
    const before = socket.sent.length;
    await expect(client.mute(EVERYONE, { signal: controller.signal })).rejects.toBe(reason);
    expect(socket.sent).toHaveLength(before);
  });

  test("is not waited for by a timer once it is there", async () => {
    const { client, socket } = await joined({}, { watch: false });
    const before = vi.getTimerCount();
    const muting = client.mute(EVERYONE);
    expect(vi.getTimerCount()).toBe(before + 1);
    socket.answer();
    await muting;
    expect(vi.getTimerCount()).toBe(before);
  });
});

describe("types", () => {
  type Action = Exclude<Command["payload"]["action"], "join" | "ping" | "watch">;
  type CamelCase<S extends string> = S extends `${infer Head}_${infer Tail}` ? `${Head}${Capitalize<CamelCase<Tail>>}` : S;

  test("every command of the protocol is a function", () => {
    expectTypeOf<CamelCase<Action>>().toEqualTypeOf<keyof Commands>();
  });

  test("fields are checked, alternatives too", () => {
    expectTypeOf<Commands["mute"]>().returns.toEqualTypeOf<Promise<Result>>();
    expectTypeOf<{ participants: string[] }>().toExtend<Fields<Mute>>();
    expectTypeOf<{ everyone_except: string[]; sources: ["camera"] }>().toExtend<Fields<Mute>>();
    expectTypeOf<{ sources: ["camera"] }>().not.toExtend<Fields<Mute>>();
    expectTypeOf<{ participants: string[]; everyone_except: string[] }>().not.toExtend<Fields<Mute>>();
  });
});

test("each function sends the command of its name", async () => {
  const { client, socket } = await joined();
  const fields = { participants: [], source: "camera", target: "bob", command_id: "c", request_id: "r", accept: true, limit: 1 };
  const members = Object.getOwnPropertyNames(Object.getPrototypeOf(Object.getPrototypeOf(client)));
  const calls = members.filter((name) => name !== "constructor");
  expect(calls.length).toBeGreaterThan(25);
  for (const name of calls) {
    const call = client[name as keyof Commands] as (fields: object) => Promise<unknown>;
    const takesNone = /^(raiseHand|createNew|requestPopout|disableMicro|getState)/.test(name);
    call.call(client, takesNone ? {} : fields).catch(() => undefined);
    const action = name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    expect(socket.sent.at(-1)?.payload["action"]).toBe(action);
  }
  client.close();
  await settled();
});
