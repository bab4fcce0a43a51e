import type { Ended } from "./connection.js";
import type { ControlErrorCode, ResultErrorCode } from "./protocol.js";

/** Whatever goes wrong here without being a bug. */
export class SignalingError extends Error {
  override readonly name: string = "SignalingError";
}

/** Why a command was refused; what to do then is in the README. */
export type RefusalCode = ResultErrorCode | ControlErrorCode;

/** The server understood a command and did nothing of it. */
export class CommandRefused extends SignalingError {
  override readonly name = "CommandRefused";
  /** Why, for programs. */
  readonly code: RefusalCode;
  /** Which field is wrong, and why; for developers. */
  readonly detail: string | undefined;
  /** With `rate_limit_exceeded`: when to try again, in seconds. */
  readonly retryAfterS: number | undefined;

  /** @internal */
  constructor(action: string, code: RefusalCode, detail?: string, retryAfterS?: number) {
    super(`${action} was refused: ${code}${detail === undefined ? "" : ` (${detail})`}`);
    this.code = code;
    this.detail = detail;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * A command has no answer, and none will come.
 *
 * If it was `sent`, it may have been carried out all the same: once joined again, the state says what holds.
 */
export class NoAnswer extends SignalingError {
  override readonly name = "NoAnswer";
  readonly why: "not_joined" | "connection_lost" | "timed_out";
  /** Whether it left this client: if not, nothing of it was done. */
  readonly sent: boolean;
  /** Known when the server told of what was done before it could answer: then it was done, and `undo` takes this. */
  readonly commandId: string | undefined;

  /** @internal */
  constructor(action: string, why: NoAnswer["why"], sent: boolean, commandId?: string) {
    super(`${action} has no answer: ${why}, ${sent ? "it may have been carried out" : "it was not sent"}`);
    this.why = why;
    this.sent = sent;
    this.commandId = commandId;
  }
}

/** The client has stopped for good, and why. */
export class ConnectionEnded extends SignalingError {
  override readonly name = "ConnectionEnded";
  readonly connection: Ended;

  /** @internal */
  constructor(connection: Ended) {
    super(`the connection has ended: ${connection.reason}`);
    this.connection = connection;
  }
}

/** To be thrown by the `ticket` of {@link ConnectOptions}: this person gets none, so that nothing is tried again. */
export class AccessDenied extends SignalingError {
  override readonly name = "AccessDenied";
}
