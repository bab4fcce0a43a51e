import { CommandRefused, NoAnswer } from "./errors.js";
import type { Command, ServerEvents, ServerFrame } from "./protocol.js";

/** How long to wait for the answer to one command. */
export interface CommandOptions {
  /** Gives up waiting with its `reason`; what was sent may be carried out all the same. */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds until {@link NoAnswer}; that of {@link ConnectOptions} if left out. */
  readonly timeoutMs?: number | undefined;
}

type Payload = ServerFrame["payload"];

interface Pending {
  readonly action: string;
  readonly namespace: Command["namespace"];
  /** The event that is the answer, where that is not `result`. */
  readonly answer: keyof ServerEvents | undefined;
  readonly settle: (payload: Payload) => void;
  readonly reject: (reason: unknown) => void;
  commandId: string | undefined;
}

/** The commands whose answers are awaited, by transaction id. */
export class Answers {
  readonly #pending = new Map<number, Pending>();
  #last = 0;

  /**
   * Send a command and wait for its answer.
   *
   * @param send Whether it could be sent under this transaction id.
   * @param answer The event that is the answer; if left out, the `result`, or for `control` the first event of it.
   */
  async wait(
    { namespace, payload: { action } }: Command,
    send: (transactionId: number) => boolean,
    answer: keyof ServerEvents | undefined,
    { signal, timeoutMs }: { signal?: AbortSignal | undefined; timeoutMs: number },
  ): Promise<Payload> {
    signal?.throwIfAborted();
    const id = ++this.#last;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let onAbort: (() => void) | undefined;
    try {
      return await new Promise<Payload>((settle, reject) => {
        const pending: Pending = { action, namespace, answer, settle, reject, commandId: undefined };
        timer = setTimeout(() => reject(new NoAnswer(action, "timed_out", true, pending.commandId)), timeoutMs);
        onAbort = () => reject(signal?.reason);
        signal?.addEventListener("abort", onAbort);
        this.#pending.set(id, pending);
        if (!send(id)) reject(new NoAnswer(action, "not_joined", false));
      });
    } finally {
      clearTimeout(timer);
      if (onAbort !== undefined) signal?.removeEventListener("abort", onAbort);
      this.#pending.delete(id);
    }
  }

  /** A frame that may be an answer, or say something of one. */
  hear({ namespace, payload, transaction_id }: ServerFrame): void {
    const pending = this.#pending.get(transaction_id as number);
    if (pending === undefined) return;
    const { action, settle, reject } = pending;
    if (payload.message === "result" || (payload.message === "error" && namespace === "control")) {
      const outcomes = "outcomes" in payload ? payload.outcomes : [];
      if (payload.error !== undefined && outcomes.length === 0) {
        const retryAfterS = "retry_after_s" in payload ? payload.retry_after_s : undefined;
        reject(new CommandRefused(action, payload.error, payload.detail, retryAfterS));
      } else if (pending.answer === undefined) {
        settle(payload);
      }
    } else if (pending.answer === `${namespace}/${payload.message}`) {
      settle(payload);
    } else if (payload.message === "action_taken") {
      pending.commandId = payload.command_id;
    } else if (namespace === "control" && pending.namespace === "control") {
      settle(payload);
    }
  }

  /** The connection is gone: no answer will come any more. */
  lose(): void {
    for (const { action, reject, commandId } of this.#pending.values()) {
      reject(new NoAnswer(action, "connection_lost", true, commandId));
    }
  }
}
