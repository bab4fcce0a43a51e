/** A server that fails when it is told to; `tests/console` has the real one. */
import { vi } from "vitest";

import { connect, type ConnectOptions, type ModerationClient, type ServerFrame } from "../src/index.js";
import type { ControlData, JoinSuccess, ParticipantView, StateView } from "../src/index.js";

type Listeners = Record<"open" | "message" | "close" | "error", ((event: never) => void)[]>;

/** The client's end of a connection, whose other end is the test. */
export class FakeSocket {
  static all: FakeSocket[] = [];
  readonly url: string;
  readonly protocols: string[];
  readonly sent: { namespace: string; payload: Record<string, unknown>; transaction_id?: number }[] = [];
  closedWith: number | undefined;
  readonly #listeners: Listeners = { open: [], message: [], close: [], error: [] };

  constructor(url: string, protocols: string[]) {
    this.url = url;
    this.protocols = protocols;
    FakeSocket.all.push(this);
  }

  static get last(): FakeSocket {
    const last = FakeSocket.all.at(-1);
    if (last === undefined) throw new Error("nothing has been opened");
    return last;
  }

  addEventListener(type: keyof Listeners, listener: (event: never) => void): void {
    this.#listeners[type].push(listener);
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(code?: number): void {
    this.closedWith = code;
  }

  #dispatch(type: keyof Listeners, event: object): void {
    for (const listener of this.#listeners[type]) listener(event as never);
  }

  /** The server lets us connect. */
  open(): void {
    this.#dispatch("open", {});
  }

  /** The server tells something. */
  tell(namespace: ServerFrame["namespace"], payload: object, transaction_id?: number): void {
    const frame = { namespace, timestamp: "2026-03-01T09:30:00.123Z", payload, transaction_id };
    this.#dispatch("message", { data: JSON.stringify(frame) });
  }

  /** The server answers the newest command. */
  answer(fields: object = {}, namespace: ServerFrame["namespace"] = "livekit_moderation"): void {
    const outcomes = { message: "result", command_id: "c1", outcomes: [], repaired_later: [] };
    this.tell(namespace, { ...outcomes, ...fields }, this.sent.at(-1)?.transaction_id);
  }

  /** The connection ends. */
  end(code: number): void {
    this.#dispatch("close", { code });
  }

  /** The server refuses the handshake, as `ws` tells. */
  refuse(status: number): void {
    this.#dispatch("error", { message: `Unexpected server response: ${status}` });
    this.end(1006);
  }

  /** What was sent of this action. */
  commands(action: string): Record<string, unknown>[] {
    return this.sent.map(({ payload }) => payload).filter((payload) => payload["action"] === action);
  }
}

export const BOB: ControlData = {
  display_name: "Bob",
  role: "user",
  participation_kind: "user",
  hand_is_up: false,
  hand_updated_at: "2026-03-01T09:00:00.000Z",
  joined_at: "2026-03-01T09:00:00.000Z",
  left_at: null,
};

export function person(participant: string, changes: Partial<ParticipantView> = {}): ParticipantView {
  return {
    participant,
    role: "user",
    kind: "user",
    connected: true,
    in_livekit: true,
    may_publish: ["camera", "microphone"],
    publishing: [],
    hand_is_up: false,
    settling: false,
    ...changes,
  };
}

export const STATE: StateView = {
  version: 7,
  restrictions: [],
  blocks: [],
  bans: [],
  participants: [person("alice", { role: "moderator" }), person("bob"), person("carol")],
  strangers: [],
};

const CREDENTIALS = { room: "standup", token: "t1", public_url: "wss://lk.example.org" };

/** What a joiner is told: Alice, who moderates, unless it is said otherwise. */
export function joinSuccess(changes: Partial<JoinSuccess> = {}): Partial<JoinSuccess> {
  return {
    message: "join_success",
    id: "alice",
    display_name: "Alice",
    role: "moderator",
    hand_is_up: false,
    participants: [{ id: "bob", control: BOB }],
    livekit: { ...CREDENTIALS, microphone_restriction_state: { type: "disabled" }, credentials: CREDENTIALS },
    livekit_moderation: STATE,
    ...changes,
  };
}

/** A client that has begun to connect. */
export async function connecting(options: Partial<ConnectOptions> = {}): Promise<ModerationClient> {
  const client = connect({
    url: "wss://meet.example.org/signaling",
    ticket: () => "ticket",
    WebSocket: FakeSocket,
    backoffMs: () => 100,
    ...options,
  });
  await settled();
  return client;
}

/** A client that has joined, by default Alice. */
export async function joined(
  changes: Partial<JoinSuccess> = {},
  options: Partial<ConnectOptions> = {},
): Promise<{ client: ModerationClient; socket: FakeSocket }> {
  const client = await connecting(options);
  const socket = FakeSocket.last;
  socket.open();
  socket.tell("control", joinSuccess(changes));
  return { client, socket };
}

/** Let promises go on, and timers that are due. */
export async function settled(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}
