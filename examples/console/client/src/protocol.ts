// The messages of the protocol, made of schemas/ by `npm run types`. Not to be edited by hand.

/** What somebody may do: moderators command. */
export type Role = "guest" | "user" | "moderator";

/** How somebody takes part. */
export type Kind = "user" | "guest" | "sip" | "recorder";

/** What LiveKit calls somebody who never joined the signaling. */
export type StrangerKind = "standard" | "ingress" | "egress" | "agent" | "sip";

/** What a medium is declared to be; screen sharing has two, which go together. */
export type Source = "camera" | "microphone" | "screen_share" | "screen_share_audio";

/** What moderators restrict, block and stop; `screen_share` is its sound too. */
export type RestrictableSource = "camera" | "microphone" | "screen_share";

/** Why somebody may not publish a source. */
export type BlockCause = "moderator" | "bypass" | "hold";

/** Why somebody may publish something else than before. */
export type PermissionCause =
  | "restriction"
  | "permission"
  | "hold"
  | "presenter"
  | "role"
  | "bypass"
  | "expiry"
  | "undo";

/** Why somebody is gone. */
export type LeaveReason = "quit" | "timeout" | "kicked" | "banned";

/** What a command came to for one person. */
export type OutcomeName =
  | "muted"
  | "already_muted"
  | "no_track"
  | "granted"
  | "revoked"
  | "restricted"
  | "settling"
  | "unrestricted"
  | "unchanged"
  | "exempt"
  | "stopped"
  | "removed"
  | "banned"
  | "asked"
  | "not_connected"
  | "unknown"
  | "failed";

/** Why it failed for one person. */
export type OutcomeError = "livekit_unavailable" | "livekit_rejected" | "rate_limit_exceeded";

/** Why a command was refused, or did not reach everybody. */
export type ResultErrorCode =
  | "insufficient_permissions"
  | "invalid_command"
  | "livekit_unavailable"
  | "unavailable"
  | "unknown_command_id"
  | "unknown_request_id"
  | "not_undoable"
  | "rate_limit_exceeded"
  | "internal";

/** Why a command of `control` was refused. */
export type ControlErrorCode =
  | "invalid_json"
  | "invalid_namespace"
  | "invalid_command"
  | "already_joined"
  | "not_yet_joined"
  | "insufficient_permissions"
  | "nothing_to_do"
  | "rate_limit_exceeded"
  | "internal";

/** What a moderator did, and what it came to. */
export interface AuditView {
  readonly command_id: string;
  readonly at: Timestamp;
  readonly moderator: ParticipantId | "controller";
  readonly action: string;
  /** Sorted. */
  readonly targets: readonly string[];
  readonly outcomes: readonly Outcome[];
  readonly reason?: string;
}

/**
 * A source that somebody may not publish, by name.
 *
 * A moderator did it; or they did something under a false name, `count` times so far; or a mute holds until `until`.
 */
export interface BlockView {
  readonly participant: string;
  readonly source: Source;
  readonly cause: BlockCause;
  readonly count?: number;
  readonly until?: Timestamp;
}

/** The members of `state` that differ, whole; of `participants` only those who do. */
export interface Changed {
  readonly restrictions?: readonly RestrictionView[];
  readonly blocks?: readonly BlockView[];
  /** Sorted. */
  readonly bans?: readonly string[];
  readonly presenter?: ParticipantId;
  readonly participants?: readonly (ParticipantView | ParticipantGone)[];
  readonly strangers?: readonly StrangerView[];
  readonly gone?: readonly "presenter"[];
}

/** Known clients read it unguarded; there is no chat here. */
export interface Chat {
  readonly enabled: false;
  readonly groups_history: readonly [];
  readonly room_history: RoomHistory;
  readonly private_history: readonly [];
  readonly last_seen_timestamp_global: null;
  readonly last_seen_timestamps_private: Empty;
  readonly last_seen_timestamps_group: Empty;
}

/**
 * What everybody in the meeting may know of a participant.
 *
 * `hand_updated_at` is when the hand last went up or down, or when they joined. Whoever is told of has not left; known
 * clients look at `left_at` for that.
 */
export interface ControlData {
  readonly display_name: string;
  readonly role: Role;
  readonly participation_kind: Kind;
  readonly hand_is_up: boolean;
  readonly hand_updated_at: Timestamp;
  readonly joined_at: Timestamp;
  readonly left_at: null;
}

/** Who made a room, whom nobody knows here. */
export interface Creator {
  readonly title: "";
  readonly firstname: "";
  readonly lastname: "";
  readonly display_name: "";
  readonly avatar_url: "";
}

/** An object without members. */
export type Empty = Readonly<Record<string, never>>;

/** What the host tells a joiner under the key `livekit`; known clients read it flat, the description nests it. */
export interface JoinData {
  readonly room: string;
  readonly token: string;
  readonly public_url: string;
  readonly service_url?: string;
  readonly microphone_restriction_state: MicrophoneRestrictionsOn | MicrophoneRestrictionsOff;
  /** The same once more. */
  readonly credentials: MediaCredentials;
}

/** What one person may publish now, for that person. */
export interface MayPublish {
  readonly may_publish: readonly Source[];
}

/** What a client needs to enter a LiveKit room; `service_url` only for kinds that run beside the server. */
export interface MediaCredentials {
  readonly room: string;
  readonly token: string;
  readonly public_url: string;
  readonly service_url?: string;
}

/** Everybody may publish a microphone. */
export interface MicrophoneRestrictionsOff {
  readonly type: "disabled";
}

/** Only those listed, and moderators, may publish a microphone. */
export interface MicrophoneRestrictionsOn {
  readonly type: "enabled";
  /** Sorted. */
  readonly unrestricted_participants: readonly string[];
}

/**
 * What a command came to for one person.
 *
 * Who `cannot_publish_again` may, and will not: telephones, gateways and WHIP clients publish once, when they come.
 */
export interface Outcome {
  readonly participant: string;
  readonly outcome: OutcomeName;
  readonly error?: OutcomeError;
  readonly detail?: "cannot_publish_again";
}

/** A participant, by id. */
export interface ParticipantEntry {
  readonly id: ParticipantId;
  readonly control: ControlData;
}

/** Somebody is not in the meeting any more. */
export interface ParticipantGone {
  readonly participant: ParticipantId;
  readonly gone: true;
}

/** A participant's id; a UUID in lower case and with hyphens. */
export type ParticipantId = string;

/**
 * Somebody as a moderator sees them.
 *
 * `publishing` and `in_livekit` are as of the last look at LiveKit; without `hand_updated_at`, the hand never went up.
 */
export interface ParticipantView {
  readonly participant: ParticipantId;
  readonly role: Role;
  readonly kind: Kind;
  readonly connected: boolean;
  readonly in_livekit: boolean;
  readonly may_publish: readonly Source[];
  readonly publishing: readonly TrackView[];
  readonly hand_is_up: boolean;
  readonly hand_updated_at?: Timestamp;
  readonly settling: boolean;
}

/** A source that only moderators and those listed may publish. */
export interface RestrictionView {
  readonly source: Source;
  /** Sorted. */
  readonly allowed: readonly string[];
  readonly expires_at?: Timestamp;
}

/** What was said to everybody. */
export interface RoomHistory {
  readonly messages: readonly [];
  readonly next_index: null;
}

/** The meeting. */
export interface RoomInfo {
  readonly id: string;
  readonly created_by: Creator;
}

/** The whole meeting as a moderator sees it. */
export interface StateView {
  readonly version: number;
  readonly restrictions: readonly RestrictionView[];
  readonly blocks: readonly BlockView[];
  /** Sorted. */
  readonly bans: readonly string[];
  readonly presenter?: ParticipantId;
  readonly participants: readonly ParticipantView[];
  readonly strangers: readonly StrangerView[];
}

/** Somebody who is in LiveKit and never joined here, as of the last look; `kind` is what LiveKit calls them. */
export interface StrangerView {
  readonly identity: string;
  readonly role: "guest";
  readonly kind: StrangerKind;
  readonly connected: false;
  readonly in_livekit: true;
  readonly may_publish: readonly Source[];
  readonly publishing: readonly TrackView[];
  readonly hand_is_up: false;
  readonly settling: boolean;
}

/** Known clients read it unguarded; nothing is limited here by what somebody pays. */
export interface Tariff {
  readonly id: "00000000-0000-0000-0000-000000000000";
  readonly name: "unlimited";
  readonly quotas: Empty;
  readonly modules: Empty;
}

/** RFC 3339, in UTC, to the millisecond. */
export type Timestamp = string;

/** A medium that somebody publishes; `unknown` is LiveKit's word for what says of itself nothing. */
export interface TrackView {
  readonly source: Source | "unknown";
  readonly track_sid: string;
  readonly muted: boolean;
}

/** What you sent was refused; `detail` names the field of what cannot be parsed. */
export interface ControlError {
  readonly message: "error";
  readonly error: ControlErrorCode;
  readonly detail?: string;
}

/** Make `target` a moderator. */
export interface GrantModeratorRole {
  readonly action: "grant_moderator_role";
  readonly target: ParticipantId;
}

/** Your hand is down; a moderator may have done it. */
export interface HandLowered {
  readonly message: "hand_lowered";
}

/** Your hand is up. */
export interface HandRaised {
  readonly message: "hand_raised";
}

/** Enter the meeting of the ticket; the first command of every connection. Guests alone choose their names. */
export interface Join {
  readonly action: "join";
  readonly display_name?: string | undefined;
  /** If left out: `[]`. */
  readonly extensions?: readonly string[] | undefined;
}

/** You are in. `livekit` is left out when LiveKit does not answer, `livekit_moderation` without the extension. */
export interface JoinSuccess {
  readonly message: "join_success";
  readonly id: ParticipantId;
  readonly display_name: string;
  readonly role: Role;
  readonly hand_is_up: boolean;
  readonly hand_updated_at?: Timestamp;
  readonly participants: readonly ParticipantEntry[];
  readonly livekit?: JoinData;
  readonly livekit_moderation?: StateView | MayPublish;
  readonly room_info: RoomInfo;
  readonly tariff: Tariff;
  readonly chat: Chat;
}

/** Somebody came. */
export interface Joined {
  readonly message: "joined";
  readonly id: ParticipantId;
  readonly control: ControlData;
}

/** Somebody went, or did not come back. */
export interface Left {
  readonly message: "left";
  readonly id: ParticipantId;
  readonly reason: LeaveReason;
}

/** Take a hand down: one's own, or as a moderator that of `target`. */
export interface LowerHand {
  readonly action: "lower_hand";
  readonly target?: ParticipantId | undefined;
}

/** You made `target` a moderator. */
export interface ModeratorRoleGranted {
  readonly message: "moderator_role_granted";
  readonly target: ParticipantId;
}

/** You made `target` a moderator no longer. */
export interface ModeratorRoleRevoked {
  readonly message: "moderator_role_revoked";
  readonly target: ParticipantId;
}

/** Ask for the floor. */
export interface RaiseHand {
  readonly action: "raise_hand";
}

/** Make `target` a moderator no longer. */
export interface RevokeModeratorRole {
  readonly action: "revoke_moderator_role";
  readonly target: ParticipantId;
}

/** Your role changed. */
export interface RoleUpdated {
  readonly message: "role_updated";
  readonly new_role: Role;
}

/** The meeting is over; the connection is about to be closed with 1000. */
export interface RoomDeleted {
  readonly message: "room_deleted";
}

/** Something about somebody changed. */
export interface Update {
  readonly message: "update";
  readonly id: ParticipantId;
  readonly control: ControlData;
}

/** What was sent is no ping. */
export interface EchoError {
  readonly message: "error";
  readonly error: "invalid_command";
  readonly detail?: string;
}

/** Are you there? */
export interface Ping {
  readonly action: "ping";
}

/** Yes. */
export interface Pong {
  readonly message: "pong";
}

/** Mint a new token from the meeting's state. */
export interface CreateNewAccessToken {
  readonly action: "create_new_access_token";
}

/** A new token, for the connection that asked or that was moved. */
export interface Credentials {
  readonly message: "credentials";
  readonly room: string;
  readonly token: string;
  readonly public_url: string;
  readonly service_url?: string;
}

/** Let everybody publish a microphone again. */
export interface DisableMicrophoneRestrictions {
  readonly action: "disable_microphone_restrictions";
}

/** Let only these participants, and moderators, publish a microphone. */
export interface EnableMicrophoneRestrictions {
  readonly action: "enable_microphone_restrictions";
  /** In any order; who is named twice counts once. */
  readonly unrestricted_participants: readonly string[];
}

/** Your command was refused, or did not reach everybody; `detail` names the field of one that cannot be parsed. */
export interface LiveKitError {
  readonly message: "error";
  readonly error: "livekit_unavailable" | "insufficient_permissions" | "rate_limit_exceeded" | "invalid_command" | "internal";
  readonly detail?: string;
}

/** Mute the microphone tracks of these participants, once. */
export interface ForceMute {
  readonly action: "force_mute";
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** LiveKit confirmed that your microphone was muted. */
export interface ForceMuted {
  readonly message: "force_muted";
  readonly moderator: ParticipantId | "controller";
}

/** Allow these participants by name to share their screen. */
export interface GrantScreenSharePermission {
  readonly action: "grant_screen_share_permission";
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** From now on everybody may publish a microphone. */
export interface MicrophoneRestrictionsDisabled {
  readonly message: "microphone_restrictions_disabled";
}

/** From now on only those listed, and moderators, may publish a microphone. */
export interface MicrophoneRestrictionsEnabled {
  readonly message: "microphone_restrictions_enabled";
  /** Sorted. */
  readonly unrestricted_participants: readonly string[];
}

/** A popout's token, for the connection that asked. */
export interface PopoutStreamAccessToken {
  readonly message: "popout_stream_access_token";
  readonly token: string;
}

/** Mint a token for a hidden viewer that can only subscribe. */
export interface RequestPopoutStreamAccessToken {
  readonly action: "request_popout_stream_access_token";
}

/** Forbid these participants by name to share their screen, moderators too; a running share ends. */
export interface RevokeScreenSharePermission {
  readonly action: "revoke_screen_share_permission";
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** What your grant or revocation came to: those for whom it now holds. */
export interface ScreenSharePermissionsUpdated {
  readonly message: "screen_share_permissions_updated";
  readonly grant: boolean;
  /** Sorted. */
  readonly participants: readonly string[];
}

/** A moderator did something. */
export interface ActionTaken {
  readonly message: "action_taken";
  readonly command_id: string;
  readonly at: Timestamp;
  readonly moderator: ParticipantId | "controller";
  readonly action: string;
  /** Sorted. */
  readonly targets: readonly string[];
  readonly outcomes: readonly Outcome[];
  readonly reason?: string;
}

/** Let these participants by name publish the source, whatever blocked or restricted them. */
export interface Allow {
  readonly action: "allow";
  readonly source: RestrictableSource;
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** Answer a moderator's request to you; accepting it lets you use your microphone. */
export interface AnswerUnmuteRequest {
  readonly action: "answer_unmute_request";
  /** 128 characters at most. */
  readonly request_id: string;
  readonly accept: boolean;
}

/** Ask these participants to unmute their microphones; nobody is unmuted by force. */
export interface AskToUnmute {
  readonly action: "ask_to_unmute";
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** What moderators did, newest first. */
export interface Audit {
  readonly message: "audit";
  readonly entries: readonly AuditView[];
}

/** Somebody published a medium under the name of a source that it is not; it was stopped. */
export interface BypassStopped {
  readonly message: "bypass_stopped";
  readonly participant: string;
  readonly track_sid: string;
  readonly declared: Source;
  readonly media: "audio" | "video";
}

/** Forbid these participants by name to publish the source, moderators too. */
export interface Disallow {
  readonly action: "disallow";
  readonly source: RestrictableSource;
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** LiveKit allowed somebody something else than what holds, and was set right. */
export interface DriftRepaired {
  readonly message: "drift_repaired";
  readonly participant: string;
  readonly found: readonly Source[];
  readonly expected: readonly Source[];
}

/** Your command was refused, and had no `transaction_id` to be answered by. */
export interface ModerationError {
  readonly message: "error";
  readonly error: ResultErrorCode;
  readonly detail?: string;
  readonly retry_after_s?: number;
}

/** Show me what moderators did, newest first, 512 KiB at most; `before` continues after the entry of a command. */
export interface GetAudit {
  readonly action: "get_audit";
  /** 1 to 100. */
  readonly limit: number;
  /** 128 characters at most. */
  readonly before?: string | undefined;
}

/** Show me the whole meeting. */
export interface GetState {
  readonly action: "get_state";
}

/** Remove these participants from LiveKit and the signaling; with `ban`, until the meeting ends. */
export interface Kick {
  readonly action: "kick";
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
  /** If left out: `false`. */
  readonly ban?: boolean | undefined;
  /** 500 characters at most. */
  readonly reason?: string | undefined;
}

/** You were removed from the meeting. */
export interface Kicked {
  readonly message: "kicked";
  readonly moderator: ParticipantId | "controller";
  readonly reason?: string;
}

/** Mute these participants, or everyone but moderators, you and those listed; with `hold_s`, for that long. */
export type Mute = {
  readonly action: "mute";
  /** If left out: `["microphone"]`. */
  readonly sources?: readonly Source[] | undefined;
  /** 1 to 3600. */
  readonly hold_s?: number | undefined;
} & (
  | {
      /** In any order; who is named twice counts once. */
      readonly participants: readonly string[];
      readonly everyone_except?: undefined;
    }
  | {
      readonly participants?: undefined;
      /** In any order; who is named twice counts once. */
      readonly everyone_except: readonly string[];
    }
);

/** You were muted. */
export interface Muted {
  readonly message: "muted";
  readonly moderator: ParticipantId | "controller";
  readonly sources: readonly Source[];
}

/** From now on you may publish this; without `moderator`, nobody in particular did it. */
export interface PermissionsChanged {
  readonly message: "permissions_changed";
  readonly moderator?: ParticipantId | "controller";
  readonly may_publish: readonly Source[];
  readonly cause: PermissionCause;
}

/** Tell me what this command would come to now, without doing it. */
export interface Preview {
  readonly action: "preview";
  readonly command: Mute | Restrict | Unrestrict | SetPresenter;
}

/** Let only moderators and those listed publish the source, for good or for a while. */
export interface Restrict {
  readonly action: "restrict";
  readonly source: RestrictableSource;
  /** In any order; who is named twice counts once. If left out: `[]`. */
  readonly allowed?: readonly string[] | undefined;
  /** 1 to 86400. */
  readonly expires_in_s?: number | undefined;
}

/** The one answer to a command that carries a `transaction_id`, and to every `preview`. */
export interface Result {
  readonly message: "result";
  readonly command_id: string;
  readonly action?: string;
  readonly error?: ResultErrorCode;
  readonly detail?: string;
  readonly retry_after_s?: number;
  readonly outcomes: readonly Outcome[];
  /** Sorted. */
  readonly repaired_later: readonly string[];
}

/** Let nobody else share the screen; without `participant`, everybody may again. */
export interface SetPresenter {
  readonly action: "set_presenter";
  readonly participant?: ParticipantId | undefined;
}

/** The whole meeting, for the moderator who asked. */
export interface State {
  readonly message: "state";
  readonly version: number;
  readonly restrictions: readonly RestrictionView[];
  readonly blocks: readonly BlockView[];
  /** Sorted. */
  readonly bans: readonly string[];
  readonly presenter?: ParticipantId;
  readonly participants: readonly ParticipantView[];
  readonly strangers: readonly StrangerView[];
}

/** The meeting changed; when `version` is not the next after yours, ask for the whole of it. */
export interface StateChanged {
  readonly message: "state_changed";
  readonly version: number;
  readonly changed: Changed;
}

/** The store has lost these commands, the newest last: they do not hold any more, and may be given again. */
export interface StateRolledBack {
  readonly message: "state_rolled_back";
  readonly command_ids: readonly string[];
}

/** End what these participants publish of the source; they may begin again. */
export interface Stop {
  readonly action: "stop";
  readonly source: RestrictableSource;
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** Let these participants join again. */
export interface Unban {
  readonly action: "unban";
  /** In any order; who is named twice counts once. */
  readonly participants: readonly string[];
}

/** Put back what a command changed, where nothing has changed it since. */
export interface Undo {
  readonly action: "undo";
  /** 128 characters at most. */
  readonly command_id: string;
}

/** Somebody is in LiveKit who has never joined here. */
export interface UnknownParticipant {
  readonly message: "unknown_participant";
  readonly identity: string;
}

/** Somebody answered your request to unmute. */
export interface UnmuteRequestAnswered {
  readonly message: "unmute_request_answered";
  readonly request_id: string;
  readonly participant: ParticipantId;
  readonly accepted: boolean;
}

/** A moderator asks you to unmute your microphone; answer by `request_id`. */
export interface UnmuteRequested {
  readonly message: "unmute_requested";
  readonly request_id: string;
  readonly moderator: ParticipantId | "controller";
}

/** Somebody who was muted has unmuted themselves. */
export interface UnmutedAgain {
  readonly message: "unmuted_again";
  readonly participant: string;
}

/** Let everybody publish the source again; `screen_share` goes back to the server's default. */
export interface Unrestrict {
  readonly action: "unrestrict";
  readonly source: RestrictableSource;
}

/** Show me the whole meeting, and tell me what changes from now on; or no longer. */
export interface Watch {
  readonly action: "watch";
  readonly enabled: boolean;
}

/** You were removed from the meeting for good; the connection is about to be closed with 1000. */
export interface BannedFarewell {
  readonly message: "banned";
}

/** You were removed from the meeting; the connection is about to be closed with 1000. */
export interface KickedFarewell {
  readonly message: "kicked";
}

/** Chosen by the client; the sender's own copies of what a command caused carry it back. */
export type TransactionId = number | string;

/** Every command, with the namespace that it belongs to. */
export type Command =
  | {
      readonly namespace: "control";
      readonly payload:
        | GrantModeratorRole
        | Join
        | LowerHand
        | RaiseHand
        | RevokeModeratorRole;
    }
  | {
      readonly namespace: "echo";
      readonly payload: Ping;
    }
  | {
      readonly namespace: "livekit";
      readonly payload:
        | CreateNewAccessToken
        | DisableMicrophoneRestrictions
        | EnableMicrophoneRestrictions
        | ForceMute
        | GrantScreenSharePermission
        | RequestPopoutStreamAccessToken
        | RevokeScreenSharePermission;
    }
  | {
      readonly namespace: "livekit_moderation";
      readonly payload:
        | Allow
        | AnswerUnmuteRequest
        | AskToUnmute
        | Disallow
        | GetAudit
        | GetState
        | Kick
        | Mute
        | Preview
        | Restrict
        | SetPresenter
        | Stop
        | Unban
        | Undo
        | Unrestrict
        | Watch;
    };

/** A frame from the server: an event, and the namespace that it belongs to. */
export type ServerFrame =
  | {
      readonly namespace: "control";
      readonly timestamp: Timestamp;
      readonly transaction_id?: TransactionId;
      readonly payload:
        | ControlError
        | HandLowered
        | HandRaised
        | JoinSuccess
        | Joined
        | Left
        | ModeratorRoleGranted
        | ModeratorRoleRevoked
        | RoleUpdated
        | RoomDeleted
        | Update;
    }
  | {
      readonly namespace: "echo";
      readonly timestamp: Timestamp;
      readonly transaction_id?: TransactionId;
      readonly payload: EchoError | Pong;
    }
  | {
      readonly namespace: "livekit";
      readonly timestamp: Timestamp;
      readonly transaction_id?: TransactionId;
      readonly payload:
        | Credentials
        | LiveKitError
        | ForceMuted
        | MicrophoneRestrictionsDisabled
        | MicrophoneRestrictionsEnabled
        | PopoutStreamAccessToken
        | ScreenSharePermissionsUpdated;
    }
  | {
      readonly namespace: "livekit_moderation";
      readonly timestamp: Timestamp;
      readonly transaction_id?: TransactionId;
      readonly payload:
        | ActionTaken
        | Audit
        | BypassStopped
        | DriftRepaired
        | ModerationError
        | Kicked
        | Muted
        | PermissionsChanged
        | Result
        | State
        | StateChanged
        | StateRolledBack
        | UnknownParticipant
        | UnmuteRequestAnswered
        | UnmuteRequested
        | UnmutedAgain;
    }
  | {
      readonly namespace: "moderation";
      readonly timestamp: Timestamp;
      readonly transaction_id?: TransactionId;
      readonly payload: BannedFarewell | KickedFarewell;
    };

/** Every event of the server, by namespace and name. */
export interface ServerEvents {
  /** What you sent was refused; `detail` names the field of what cannot be parsed. */
  "control/error": ControlError;
  /** Your hand is down; a moderator may have done it. */
  "control/hand_lowered": HandLowered;
  /** Your hand is up. */
  "control/hand_raised": HandRaised;
  /** You are in. `livekit` is left out when LiveKit does not answer, `livekit_moderation` without the extension. */
  "control/join_success": JoinSuccess;
  /** Somebody came. */
  "control/joined": Joined;
  /** Somebody went, or did not come back. */
  "control/left": Left;
  /** You made `target` a moderator. */
  "control/moderator_role_granted": ModeratorRoleGranted;
  /** You made `target` a moderator no longer. */
  "control/moderator_role_revoked": ModeratorRoleRevoked;
  /** Your role changed. */
  "control/role_updated": RoleUpdated;
  /** The meeting is over; the connection is about to be closed with 1000. */
  "control/room_deleted": RoomDeleted;
  /** Something about somebody changed. */
  "control/update": Update;
  /** What was sent is no ping. */
  "echo/error": EchoError;
  /** Yes. */
  "echo/pong": Pong;
  /** A new token, for the connection that asked or that was moved. */
  "livekit/credentials": Credentials;
  /** Your command was refused, or did not reach everybody; `detail` names the field of one that cannot be parsed. */
  "livekit/error": LiveKitError;
  /** LiveKit confirmed that your microphone was muted. */
  "livekit/force_muted": ForceMuted;
  /** From now on everybody may publish a microphone. */
  "livekit/microphone_restrictions_disabled": MicrophoneRestrictionsDisabled;
  /** From now on only those listed, and moderators, may publish a microphone. */
  "livekit/microphone_restrictions_enabled": MicrophoneRestrictionsEnabled;
  /** A popout's token, for the connection that asked. */
  "livekit/popout_stream_access_token": PopoutStreamAccessToken;
  /** What your grant or revocation came to: those for whom it now holds. */
  "livekit/screen_share_permissions_updated": ScreenSharePermissionsUpdated;
  /** A moderator did something. */
  "livekit_moderation/action_taken": ActionTaken;
  /** What moderators did, newest first. */
  "livekit_moderation/audit": Audit;
  /** Somebody published a medium under the name of a source that it is not; it was stopped. */
  "livekit_moderation/bypass_stopped": BypassStopped;
  /** LiveKit allowed somebody something else than what holds, and was set right. */
  "livekit_moderation/drift_repaired": DriftRepaired;
  /** Your command was refused, and had no `transaction_id` to be answered by. */
  "livekit_moderation/error": ModerationError;
  /** You were removed from the meeting. */
  "livekit_moderation/kicked": Kicked;
  /** You were muted. */
  "livekit_moderation/muted": Muted;
  /** From now on you may publish this; without `moderator`, nobody in particular did it. */
  "livekit_moderation/permissions_changed": PermissionsChanged;
  /** The one answer to a command that carries a `transaction_id`, and to every `preview`. */
  "livekit_moderation/result": Result;
  /** The whole meeting, for the moderator who asked. */
  "livekit_moderation/state": State;
  /** The meeting changed; when `version` is not the next after yours, ask for the whole of it. */
  "livekit_moderation/state_changed": StateChanged;
  /** The store has lost these commands, the newest last: they do not hold any more, and may be given again. */
  "livekit_moderation/state_rolled_back": StateRolledBack;
  /** Somebody is in LiveKit who has never joined here. */
  "livekit_moderation/unknown_participant": UnknownParticipant;
  /** Somebody answered your request to unmute. */
  "livekit_moderation/unmute_request_answered": UnmuteRequestAnswered;
  /** A moderator asks you to unmute your microphone; answer by `request_id`. */
  "livekit_moderation/unmute_requested": UnmuteRequested;
  /** Somebody who was muted has unmuted themselves. */
  "livekit_moderation/unmuted_again": UnmutedAgain;
  /** You were removed from the meeting for good; the connection is about to be closed with 1000. */
  "moderation/banned": BannedFarewell;
  /** You were removed from the meeting; the connection is about to be closed with 1000. */
  "moderation/kicked": KickedFarewell;
}
