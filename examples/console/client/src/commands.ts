import type { CommandOptions } from "./answers.js";
import type * as protocol from "./protocol.js";

/** The fields of a command, as the protocol names them. */
export type Fields<C> = C extends unknown ? Omit<C, "action"> : never;

type Payload = protocol.ServerFrame["payload"];

/**
 * Every command of the protocol as a function, named as there but in camelCase, with its fields as they are there.
 *
 * Each resolves to what the server answers, and rejects with {@link CommandRefused} or {@link NoAnswer}.
 */
export abstract class Commands {
  /** Send a command; resolves to `answer`, or the `result`, or for `control` whatever answers. */
  protected abstract command(
    command: protocol.Command,
    options: CommandOptions | undefined,
    answer?: keyof protocol.ServerEvents,
  ): Promise<Payload>;

  // --- Everybody -------------------------------------------------------------------------------------------------

  /** Ask for the floor; it is no error to ask again. */
  async raiseHand(options?: CommandOptions): Promise<void> {
    await this.#control({ action: "raise_hand" }, options);
  }

  /** Take a hand down: one's own, or as a moderator that of `target`. */
  async lowerHand(fields: Fields<protocol.LowerHand> = {}, options?: CommandOptions): Promise<void> {
    await this.#control({ action: "lower_hand", ...fields }, options);
  }

  /**
   * A new token for LiveKit, and its address. A token lets somebody in for 32 s, so ask before every `room.connect`.
   * `credentials` of the client are those from then on.
   */
  async createNewAccessToken(options?: CommandOptions): Promise<protocol.MediaCredentials> {
    const { message: _, ...credentials } = await this.#query(
      { namespace: "livekit", payload: { action: "create_new_access_token" } },
      "livekit/credentials",
      options,
    );
    return credentials;
  }

  /** A token for a window of one's own that only shows: a hidden viewer. */
  async requestPopoutStreamAccessToken(options?: CommandOptions): Promise<string> {
    const { token } = await this.#query(
      { namespace: "livekit", payload: { action: "request_popout_stream_access_token" } },
      "livekit/popout_stream_access_token",
      options,
    );
    return token;
  }

  /** Answer `livekit_moderation/unmute_requested`; accepting lets us use our microphone, which stays muted until we unmute it. */
  answerUnmuteRequest(fields: Fields<protocol.AnswerUnmuteRequest>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "answer_unmute_request", ...fields }, options);
  }

  // --- Moderators: people ----------------------------------------------------------------------------------------

  /** Mute people, or everyone but moderators, oneself and those listed; with `hold_s` they cannot unmute for so long. */
  mute(fields: Fields<protocol.Mute>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "mute", ...fields }, options);
  }

  /** Mute the microphones of these people, once. */
  forceMute(fields: Fields<protocol.ForceMute>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#livekit({ action: "force_mute", ...fields }, options);
  }

  /** End what these people publish of a source; they may begin again. */
  stop(fields: Fields<protocol.Stop>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "stop", ...fields }, options);
  }

  /** Forbid these people by name to publish a source, moderators too. */
  disallow(fields: Fields<protocol.Disallow>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "disallow", ...fields }, options);
  }

  /** Let these people by name publish a source, whatever blocked or restricted them. */
  allow(fields: Fields<protocol.Allow>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "allow", ...fields }, options);
  }

  /** Let these people by name share their screen. */
  grantScreenSharePermission(
    fields: Fields<protocol.GrantScreenSharePermission>,
    options?: CommandOptions,
  ): Promise<protocol.Result> {
    return this.#livekit({ action: "grant_screen_share_permission", ...fields }, options);
  }

  /** Forbid these people by name to share their screen, moderators too; a running share ends. */
  revokeScreenSharePermission(
    fields: Fields<protocol.RevokeScreenSharePermission>,
    options?: CommandOptions,
  ): Promise<protocol.Result> {
    return this.#livekit({ action: "revoke_screen_share_permission", ...fields }, options);
  }

  /** Ask these people to unmute; nobody is unmuted by force. `livekit_moderation/unmute_request_answered` says what they say. */
  askToUnmute(fields: Fields<protocol.AskToUnmute>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "ask_to_unmute", ...fields }, options);
  }

  /** Remove these people; with `ban`, until the meeting ends. */
  kick(fields: Fields<protocol.Kick>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "kick", ...fields }, options);
  }

  /** Let these people join again. */
  unban(fields: Fields<protocol.Unban>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "unban", ...fields }, options);
  }

  /** Make `target` a moderator. */
  async grantModeratorRole(fields: Fields<protocol.GrantModeratorRole>, options?: CommandOptions): Promise<void> {
    await this.#control({ action: "grant_moderator_role", ...fields }, options);
  }

  /** Make `target` a moderator no longer. */
  async revokeModeratorRole(fields: Fields<protocol.RevokeModeratorRole>, options?: CommandOptions): Promise<void> {
    await this.#control({ action: "revoke_moderator_role", ...fields }, options);
  }

  // --- Moderators: the room --------------------------------------------------------------------------------------

  /** Lock a source: only moderators and those `allowed` may publish it, for good or for `expires_in_s`. */
  restrict(fields: Fields<protocol.Restrict>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "restrict", ...fields }, options);
  }

  /** Free a source; `screen_share` goes back to the server's default. */
  unrestrict(fields: Fields<protocol.Unrestrict>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "unrestrict", ...fields }, options);
  }

  /** Lock microphones, but for moderators and those listed; what `restrict` does too. */
  enableMicrophoneRestrictions(
    fields: Fields<protocol.EnableMicrophoneRestrictions>,
    options?: CommandOptions,
  ): Promise<protocol.Result> {
    return this.#livekit({ action: "enable_microphone_restrictions", ...fields }, options);
  }

  /** Free microphones. */
  disableMicrophoneRestrictions(options?: CommandOptions): Promise<protocol.Result> {
    return this.#livekit({ action: "disable_microphone_restrictions" }, options);
  }

  /** Let nobody else share the screen; without `participant`, everybody may again. */
  setPresenter(fields: Fields<protocol.SetPresenter> = {}, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "set_presenter", ...fields }, options);
  }

  // --- Moderators: looking, and taking back ----------------------------------------------------------------------

  /** What a command for the whole room would come to now, without doing it. */
  preview(command: protocol.Preview["command"], options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "preview", command }, options);
  }

  /** Put back what a command changed, where nothing has changed it since; `command_id` is in its result. */
  undo(fields: Fields<protocol.Undo>, options?: CommandOptions): Promise<protocol.Result> {
    return this.#moderate({ action: "undo", ...fields }, options);
  }

  /** The whole meeting now; the snapshot's `state` needs no asking. */
  async getState(options?: CommandOptions): Promise<protocol.StateView> {
    const { message: _, ...state } = await this.#query(
      { namespace: "livekit_moderation", payload: { action: "get_state" } },
      "livekit_moderation/state",
      options,
    );
    return state;
  }

  /** What moderators did, newest first; fewer than `limit` when they are long, and `before` continues. */
  async getAudit(
    fields: Fields<protocol.GetAudit>,
    options?: CommandOptions,
  ): Promise<readonly protocol.AuditView[]> {
    const { entries } = await this.#query(
      { namespace: "livekit_moderation", payload: { action: "get_audit", ...fields } },
      "livekit_moderation/audit",
      options,
    );
    return entries;
  }

  #control(payload: PayloadOf<"control">, options: CommandOptions | undefined): Promise<Payload> {
    return this.command({ namespace: "control", payload }, options);
  }

  #livekit(payload: PayloadOf<"livekit">, options: CommandOptions | undefined): Promise<protocol.Result> {
    return this.command({ namespace: "livekit", payload }, options) as Promise<protocol.Result>;
  }

  #moderate(payload: PayloadOf<"livekit_moderation">, options: CommandOptions | undefined): Promise<protocol.Result> {
    return this.command({ namespace: "livekit_moderation", payload }, options) as Promise<protocol.Result>;
  }

  #query<E extends keyof protocol.ServerEvents>(
    command: protocol.Command,
    answer: E,
    options: CommandOptions | undefined,
  ): Promise<protocol.ServerEvents[E]> {
    return this.command(command, options, answer) as Promise<protocol.ServerEvents[E]>;
  }
}

type PayloadOf<N extends protocol.Command["namespace"]> = Extract<protocol.Command, { namespace: N }>["payload"];
