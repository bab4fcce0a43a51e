import { Answers, type CommandOptions } from "./answers.js";
import { Commands } from "./commands.js";
import { backoffMs, type Connection, Link, type SocketClass } from "./connection.js";
import { ConnectionEnded, SignalingError } from "./errors.js";
import type { Command, Credentials, MediaCredentials, ServerEvents, ServerFrame } from "./protocol.js";
import { after, isGap, type Me, type Snapshot } from "./snapshot.js";

/** Where to, as whom, and how. */
export interface ConnectOptions {
  /** The signaling of `livekit-moderation serve`, such as `wss://meet.example.org/signaling`. */
  readonly url: string;
  /**
   * A fresh ticket, from your controller; asked for at every attempt, since a ticket works once. `signal` aborts when
   * it is no longer wanted. Throw {@link AccessDenied} if there will be none; after anything else it is tried again.
   */
  readonly ticket: (signal: AbortSignal) => string | Promise<string>;
  /** How a guest wants to be called; the ticket's name stands for others. */
  readonly displayName?: string | undefined;
  /** Whether a moderator is shown the meeting in `state` of the snapshot, up to date; if left out, yes. */
  readonly watch?: boolean | undefined;
  /** Milliseconds to wait for the answer to a command; if left out, 20,000. */
  readonly commandTimeoutMs?: number | undefined;
  /** How long to wait before an attempt, in milliseconds; if left out, 0.25 to 0.5 s at first, up to 15 s. */
  readonly backoffMs?: ((attempt: number) => number) | undefined;
  /** The `WebSocket` to use, where there is no global one: that of the package `ws` in Node 20. */
  readonly WebSocket?: SocketClass | undefined;
}

/** What {@link ModerationClient.on} tells: every event of the server by namespace and name, and the client's own. */
export interface ClientEvents extends ServerEvents {
  /** How the client stands to the server is another. */
  connection: Connection;
  /** What LiveKit is to be connected with is another: after joining, coming back, moving, and asking. */
  credentials: MediaCredentials;
  /** Every frame of the server, for logs; it may hold tokens. */
  frame: ServerFrame;
}

/** How long to wait before asking again for what the server could not give. */
const ASK_AGAIN_MS = 2_000;

/** A participant's client: its commands, what it is told, and what is known at the moment. Made by {@link connect}. */
export class ModerationClient extends Commands {
  readonly #answers = new Answers();
  readonly #commandTimeoutMs: number;
  readonly #link: Link;
  readonly #listeners = new Map<keyof ClientEvents, Set<(event: never) => void>>();
  readonly #subscribers = new Set<() => void>();
  #credentials: MediaCredentials | undefined;
  #isAskingForState = false;
  #isStateMissing = false;
  #askingAgain: ReturnType<typeof setTimeout> | undefined;
  #snapshot: Snapshot;
  #watches: boolean;

  /** @internal */
  constructor(options: ConnectOptions) {
    super();
    const { url, ticket, displayName: display_name, watch = true, commandTimeoutMs = 20_000 } = options;
    const WebSocket = options.WebSocket ?? (globalThis.WebSocket as SocketClass | undefined);
    if (WebSocket === undefined) throw new SignalingError("there is no global WebSocket here: pass one on");
    this.#watches = watch;
    this.#commandTimeoutMs = commandTimeoutMs;
    this.#link = new Link({
      url,
      ticket,
      join: { namespace: "control", payload: { action: "join", display_name, extensions: ["livekit_moderation"] } },
      WebSocket,
      backoffMs: options.backoffMs ?? backoffMs,
      onChange: () => this.#update(this.#snapshot),
      onFrame: (frame) => this.#hear(frame),
    });
    this.#snapshot = { connection: this.#link.connection, people: new Map() };
    this.#link.open();
  }

  /** All that is known now; the same object until something changes. */
  readonly getSnapshot = (): Snapshot => this.#snapshot;

  /**
   * Be told when the snapshot or `credentials` are others.
   *
   * @returns What ends that. With `getSnapshot`, this is what React's `useSyncExternalStore` takes.
   */
  readonly subscribe = (onChange: () => void): (() => void) => {
    this.#subscribers.add(onChange);
    return () => this.#subscribers.delete(onChange);
  };

  /** What LiveKit is to be connected with, as of the last time that it was told; its token is valid for 32 s. */
  get credentials(): MediaCredentials | undefined {
    return this.#credentials;
  }

  /**
   * Be told of an event.
   *
   * @returns What ends that.
   */
  on<N extends keyof ClientEvents>(name: N, listener: (event: ClientEvents[N]) => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /**
   * Wait until we are in the meeting.
   *
   * @throws {@link ConnectionEnded} if that will never be.
   */
  whenJoined({ signal }: { readonly signal?: AbortSignal | undefined } = {}): Promise<Me> {
    signal?.throwIfAborted();
    return new Promise((resolve, reject) => {
      const stop = (): void => {
        unsubscribe();
        signal?.removeEventListener("abort", onAbort);
      };
      const onAbort = (): void => {
        stop();
        reject(signal?.reason);
      };
      const look = (): void => {
        const { connection, me } = this.#snapshot;
        if (connection.state === "joined" && me !== undefined) resolve(me);
        else if (connection.state === "ended") reject(new ConnectionEnded(connection));
        else return;
        stop();
      };
      const unsubscribe = this.subscribe(look);
      signal?.addEventListener("abort", onAbort);
      look();
    });
  }

  /** Whether a moderator is shown the meeting in `state` of the snapshot; see {@link ConnectOptions}. */
  watch(enabled: boolean): void {
    if (enabled === this.#watches) return;
    this.#watches = enabled;
    if (enabled) {
      this.#askForState("watch");
      return;
    }
    this.#update(this.#snapshot);
    if (this.#snapshot.me?.role === "moderator") {
      const payload = { action: "watch", enabled } as const;
      // What the server tells us all the same, if this does not reach it, is not shown.
      this.command({ namespace: "livekit_moderation", payload }).catch(() => undefined);
    }
  }

  /** Try at once instead of waiting for the next attempt, as for a button *Try now*. */
  retryNow(): void {
    this.#link.open();
  }

  /** Leave the meeting. Nothing is told after that but the connection's end; commands without an answer reject. */
  close(): void {
    this.#link.close();
  }

  protected override command(
    command: Command,
    { signal, timeoutMs = this.#commandTimeoutMs }: CommandOptions = {},
    answer?: keyof ServerEvents,
  ): Promise<ServerFrame["payload"]> {
    const send = (id: number): boolean => this.#link.send(command, id);
    return this.#answers.wait(command, send, answer, { signal, timeoutMs });
  }

  #hear(frame: ServerFrame): void {
    const { namespace, payload } = frame;
    const { state } = this.#snapshot;
    const known = this.#credentials;
    if (payload.message === "join_success") this.#credentials = payload.livekit?.credentials;
    else if (payload.message === "credentials") this.#credentials = withoutMessage(payload);
    const isAside = payload.message === "state" && !this.#watches; // of `getState`, for who asked
    this.#update(isAside ? this.#snapshot : after(this.#snapshot, frame), this.#credentials !== known);
    switch (payload.message) {
      case "join_success":
        if (this.#credentials === undefined) this.#askAgain();
        this.#askForState("watch");
        break;
      case "role_updated":
        this.#askForState("watch");
        break;
      case "state_changed":
        if (isGap(state, payload) && !this.#isAskingForState) this.#askForState("get_state");
        break;
    }
    this.#answers.hear(frame);
    if (this.#credentials !== undefined && this.#credentials !== known) this.#tell("credentials", this.#credentials);
    this.#tell(`${namespace}/${payload.message}` as keyof ServerEvents, payload as never);
    this.#tell("frame", frame);
  }

  /** Be shown the meeting, if that is wished and we may; it comes as an event, and by `watch` all that changes, too. */
  #askForState(action: "watch" | "get_state"): void {
    if (!this.#watches || this.#snapshot.me?.role !== "moderator") return;
    this.#isAskingForState = true;
    this.#isStateMissing = false;
    const payload = action === "watch" ? ({ action, enabled: true } as const) : ({ action } as const);
    this.command({ namespace: "livekit_moderation", payload })
      .catch(() => {
        this.#isStateMissing = true;
        this.#askAgain();
      })
      .finally(() => {
        this.#isAskingForState = false;
      });
  }

  /** Ask for what the server could not give; not when we are gone, since coming back begins anew. */
  #askAgain(): void {
    clearTimeout(this.#askingAgain);
    if (this.#link.connection.state !== "joined") return;
    this.#askingAgain = setTimeout(() => {
      if (this.#isStateMissing) this.#askForState("watch");
      if (this.#credentials === undefined) this.createNewAccessToken().catch(() => this.#askAgain());
    }, ASK_AGAIN_MS);
  }

  /** Another snapshot, perhaps, and another connection. */
  #update(next: Snapshot, isOther = false): void {
    const { connection } = this.#link;
    const wasJoined = this.#snapshot.connection.state === "joined";
    const isChanged = connection !== this.#snapshot.connection;
    if (!this.#watches && next.state !== undefined) {
      const { state: _, ...others } = next;
      next = others;
    }
    if (isChanged) next = { ...next, connection };
    if (isChanged && wasJoined) {
      clearTimeout(this.#askingAgain);
      this.#answers.lose();
    }
    if (next === this.#snapshot && !isOther) return;
    this.#snapshot = next;
    for (const onChange of [...this.#subscribers]) attempt(onChange);
    if (isChanged) this.#tell("connection", connection);
  }

  #tell<N extends keyof ClientEvents>(name: N, event: ClientEvents[N]): void {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) attempt(() => listener(event as never));
  }
}

/**
 * Enter a meeting: connects, joins, and stays there until `close`, through whatever happens to the network.
 *
 * @throws {@link SignalingError} where there is no `WebSocket`.
 */
export function connect(options: ConnectOptions): ModerationClient {
  return new ModerationClient(options);
}

function withoutMessage({ message: _, ...credentials }: Credentials): MediaCredentials {
  return credentials;
}

/** Call what others gave us: what they throw is theirs, and keeps nobody else from being told. */
function attempt(callback: () => void): void {
  try {
    callback();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
