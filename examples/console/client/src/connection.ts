import { AccessDenied } from "./errors.js";
import type { Command, Kicked, ServerFrame, TransactionId } from "./protocol.js";

/** Why an attempt to connect, or a connection, came to nothing. */
export interface Loss {
  /**
   * - `no_ticket`: `ticket` threw `error`.
   * - `not_opened`: nobody answers there, or the server lets nobody in with this ticket; browsers do not say which.
   * - `timed_out`: it took longer than 10 s until we had joined.
   * - `silent`: nothing was heard for more than 10 s.
   * - `closed`: by the server or the network, with `code`.
   */
  readonly cause: "no_ticket" | "not_opened" | "timed_out" | "silent" | "closed";
  /** Of the WebSocket's close; 1006 is the network. */
  readonly code?: number;
  readonly error?: unknown;
}

/** Not in the meeting (any more, if `reconnecting`), and on the way there. */
export interface Underway {
  readonly state: "connecting" | "reconnecting";
  /** Which attempt this is, or which comes next; from 1. */
  readonly attempt: number;
  /** When it begins, in milliseconds since the epoch; left out while it is being made. */
  readonly retryAt?: number;
  /** What came of the one before. */
  readonly loss?: Loss;
}

/** In the meeting. */
export interface Present {
  readonly state: "joined";
}

/** Over; another `connect` is needed to come back. */
export interface Ended {
  readonly state: "ended";
  /**
   * - `left`: by `close`.
   * - `kicked`, `banned`: by a moderator, who is in `removal` if told.
   * - `room_deleted`: the meeting is over.
   * - `taken_over`: the same person has connected elsewhere.
   * - `access_denied`: `ticket` threw {@link AccessDenied}, which is `error`.
   * - `refused`: the server will not have us; `status` is that of HTTP. Browsers are not told, and go on trying.
   */
  readonly reason: "left" | "kicked" | "banned" | "room_deleted" | "taken_over" | "access_denied" | "refused";
  readonly removal?: Kicked;
  readonly status?: number;
  readonly error?: unknown;
}

/** How the client stands to the server. */
export type Connection = Underway | Present | Ended;

/** As much of a `WebSocket` as is used here: a browser's, that of Node 22, or the class of the package `ws`. */
export interface Socket {
  send(text: string): void;
  close(code?: number): void;
  addEventListener(type: "open", listener: () => void): void;
  addEventListener(type: "message", listener: (event: { data: unknown }) => void): void;
  addEventListener(type: "close", listener: (event: { code: number }) => void): void;
  addEventListener(type: "error", listener: (event: object) => void): void;
}

/** Makes a {@link Socket}. */
export type SocketClass = new (url: string, protocols: string[]) => Socket;

/** What a {@link Link} goes by. */
export interface LinkOptions {
  readonly url: string;
  readonly ticket: (signal: AbortSignal) => string | Promise<string>;
  readonly join: Command & { readonly namespace: "control" };
  readonly WebSocket: SocketClass;
  readonly backoffMs: (attempt: number) => number;
  /** `connection` is another. */
  readonly onChange: () => void;
  readonly onFrame: (frame: ServerFrame) => void;
}

const PROTOCOL = "opentalk-signaling-json-v1.0";
const OPENING_MS = 10_000;
const PING_MS = 5_000;
const PINGS_UNHEARD = 2;
/** Any code but 1000 keeps our place in the meeting; this one is of those that browsers let us use. */
const COMING_BACK = 4_000;
/** By this attempt a server that says "try again later" (1013) is taken to have been asked. */
const LATER = 3;

/** Doubling from half a second to 15 s, of which a random part is taken, so that not all come back at once. */
export function backoffMs(attempt: number): number {
  return Math.min(15_000, 500 * 2 ** (attempt - 1)) * (0.5 + Math.random() / 2);
}

/** One person's way to the server: a WebSocket, and after it another, until the end. */
export class Link {
  connection: Connection = { state: "connecting", attempt: 1 };
  readonly #options: LinkOptions;
  #attempt = 1;
  #refusals = 0;
  #hasJoined = false;
  #opening: AbortController | undefined;
  #socket: Socket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #pinging: ReturnType<typeof setInterval> | undefined;
  #pingsUnheard = 0;
  #lastWords: "kicked" | "banned" | "room_deleted" | undefined;
  #removal: Kicked | undefined;

  constructor(options: LinkOptions) {
    this.#options = options;
  }

  /** Connect now: at first, or instead of waiting for the next attempt. */
  readonly open = (): void => {
    const { state } = this.connection;
    if (this.#opening !== undefined || state === "joined" || state === "ended") return;
    globalThis.removeEventListener?.("online", this.open);
    const opening = new AbortController();
    this.#opening = opening;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lose({ cause: "timed_out" }), OPENING_MS);
    this.#become(this.#underway());
    void this.#connect(opening);
  };

  /** Send a command; whether that was possible. */
  send(command: Command, transactionId?: TransactionId): boolean {
    if (this.connection.state !== "joined") return false;
    this.#transmit(command, transactionId);
    return true;
  }

  /** Leave the meeting, and stay away. */
  close(): void {
    if (this.connection.state !== "ended") this.#end({ state: "ended", reason: "left" });
  }

  async #connect(opening: AbortController): Promise<void> {
    let ticket;
    try {
      ticket = await this.#options.ticket(opening.signal);
    } catch (error) {
      if (opening !== this.#opening) return;
      if (error instanceof AccessDenied) this.#end({ state: "ended", reason: "access_denied", error });
      else this.#lose({ cause: "no_ticket", error });
      return;
    }
    if (opening !== this.#opening) return;
    let socket: Socket;
    try {
      socket = new this.#options.WebSocket(this.#options.url, [PROTOCOL, `ticket#${ticket}`]);
    } catch (error) {
      this.#end({ state: "ended", reason: "refused", error }); // the URL is none, or the ticket cannot be one
      return;
    }
    this.#listen(socket);
  }

  #listen(socket: Socket): void {
    let isOpen = false;
    let status: number | undefined;
    this.#socket = socket;
    socket.addEventListener("open", () => {
      if (socket !== this.#socket) return;
      isOpen = true;
      this.#transmit(this.#options.join);
      this.#pingsUnheard = 0;
      this.#pinging = setInterval(() => this.#ping(), PING_MS);
    });
    socket.addEventListener("message", (event) => {
      if (socket === this.#socket) this.#hear(String(event.data));
    });
    socket.addEventListener("error", (event) => {
      status = statusOf(event);
    });
    socket.addEventListener("close", ({ code }) => {
      if (socket === this.#socket) this.#closed(isOpen ? code : undefined, status);
    });
  }

  #transmit(command: Command, transactionId?: TransactionId): void {
    this.#socket?.send(JSON.stringify({ ...command, transaction_id: transactionId }));
  }

  #hear(text: string): void {
    this.#pingsUnheard = 0;
    const frame = JSON.parse(text) as ServerFrame;
    const { namespace, payload } = frame;
    switch (payload.message) {
      case "join_success":
        this.#hasJoined = true;
        this.#opening = undefined;
        this.#refusals = 0;
        clearTimeout(this.#timer);
        this.connection = { state: "joined" };
        break;
      case "kicked":
        if (namespace === "livekit_moderation") this.#removal = payload as Kicked;
        else this.#lastWords = "kicked";
        break;
      case "banned":
      case "room_deleted":
        this.#lastWords = payload.message;
        break;
    }
    this.#options.onFrame(frame);
  }

  #ping(): void {
    if (this.#pingsUnheard >= PINGS_UNHEARD) {
      this.#lose({ cause: "silent" });
      return;
    }
    if (this.connection.state === "joined") this.#attempt = 0; // it lasts
    this.#pingsUnheard += 1;
    this.#transmit({ namespace: "echo", payload: { action: "ping" } });
  }

  #closed(code: number | undefined, status: number | undefined): void {
    const reason = this.#lastWords ?? (code === 1000 ? "taken_over" : undefined);
    if (reason !== undefined) {
      this.#end({ state: "ended", reason, ...(this.#removal && { removal: this.#removal }) });
      return;
    }
    // A gateway that wants browsers to know closes with 4000 and the status, 4400 to 4499.
    const refusal = status ?? (code !== undefined && code >= 4400 && code < 4500 ? code - 4000 : undefined);
    // A ticket may have been too slow or lost on the way; a second fresh one in a row is not.
    if (refusal === 401) this.#refusals += 1;
    if (refusal === 400 || refusal === 403 || refusal === 404 || this.#refusals > 1) {
      this.#end({ state: "ended", reason: "refused", ...(refusal !== undefined && { status: refusal }) });
      return;
    }
    if (code === 1013) this.#attempt = Math.max(this.#attempt, LATER);
    this.#lose(code === undefined ? { cause: "not_opened" } : { cause: "closed", code });
  }

  #lose(loss: Loss): void {
    this.#drop(COMING_BACK);
    if (this.#lastWords !== undefined) {
      this.#closed(undefined, undefined);
      return;
    }
    const delayMs = this.#options.backoffMs(Math.max(1, this.#attempt));
    this.#attempt += 1;
    this.#timer = setTimeout(this.open, delayMs);
    globalThis.addEventListener?.("online", this.open);
    this.#become({ ...this.#underway(), retryAt: Date.now() + delayMs, loss });
  }

  #end(ended: Ended): void {
    this.#drop(1000);
    globalThis.removeEventListener?.("online", this.open);
    this.#become(ended);
  }

  /** Hear no more of the socket that there is, and of no attempt. */
  #drop(code: number): void {
    clearTimeout(this.#timer);
    clearInterval(this.#pinging);
    this.#opening?.abort();
    const socket = this.#socket;
    this.#opening = this.#socket = undefined;
    socket?.close(code);
  }

  #underway(): Underway {
    const attempt = Math.max(1, this.#attempt);
    const loss = "loss" in this.connection ? this.connection.loss : undefined;
    return { state: this.#hasJoined ? "reconnecting" : "connecting", attempt, ...(loss && { loss }) };
  }

  #become(connection: Connection): void {
    this.connection = connection;
    this.#options.onChange();
  }
}

/** The HTTP status with which an opening was refused, where that can be known: of `ws`, not of browsers. */
function statusOf(event: object): number | undefined {
  const message = "message" in event ? String(event.message) : "";
  const status = /^Unexpected server response: (\d{3})$/.exec(message)?.[1];
  return status === undefined ? undefined : Number(status);
}
