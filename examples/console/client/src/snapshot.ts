import type { Connection } from "./connection.js";
import type {
  ControlData,
  JoinData,
  ParticipantId,
  ParticipantView,
  Role,
  ServerFrame,
  Source,
  State,
  StateChanged,
  StateView,
  Timestamp,
} from "./protocol.js";

/** Oneself, as the server sees it. */
export interface Me {
  readonly id: ParticipantId;
  readonly display_name: string;
  readonly role: Role;
  readonly hand_is_up: boolean;
  /** When the hand last went up or down; by this, hands are in order. */
  readonly hand_updated_at?: Timestamp;
  /** What we may publish now. */
  readonly may_publish: readonly Source[];
}

/** Whether microphones are locked, and who is let speak all the same; everybody is told of that. */
export type MicrophoneRestriction = JoinData["microphone_restriction_state"];

/**
 * All that is known at one moment. Nothing in it ever changes: what changed is in another snapshot, in which what did
 * not change is the same object.
 */
export interface Snapshot {
  readonly connection: Connection;
  /** Oneself, once joined. */
  readonly me?: Me;
  /** Everybody else who is in the meeting, by id. */
  readonly people: ReadonlyMap<ParticipantId, ControlData>;
  /** Unknown before joining, and while LiveKit does not answer the server. */
  readonly microphoneRestriction?: MicrophoneRestriction;
  /** The whole meeting, for moderators who watch; see {@link ConnectOptions}. While reconnecting, what it was. */
  readonly state?: StateView;
}

/** A snapshot after a frame: the same one if nothing of it changed. */
export function after(snapshot: Snapshot, { namespace, payload, timestamp }: ServerFrame): Snapshot {
  const { me } = snapshot;
  switch (payload.message) {
    case "join_success": {
      const { id, display_name, role, hand_is_up, hand_updated_at, livekit, livekit_moderation: view } = payload;
      const state = view !== undefined && "version" in view ? view : undefined;
      const may_publish = view !== undefined && "may_publish" in view ? view.may_publish : [];
      return seen({
        connection: snapshot.connection,
        me: { id, display_name, role, hand_is_up, ...(hand_updated_at !== undefined && { hand_updated_at }), may_publish },
        people: new Map(payload.participants.map((entry) => [entry.id, entry.control])),
        ...(livekit && { microphoneRestriction: livekit.microphone_restriction_state }),
        ...(state && { state }),
      });
    }
    case "joined":
    case "update":
      return { ...snapshot, people: new Map(snapshot.people).set(payload.id, payload.control) };
    case "left": {
      const people = new Map(snapshot.people);
      return people.delete(payload.id) ? { ...snapshot, people } : snapshot;
    }
    case "hand_raised":
    case "hand_lowered": {
      const hand_is_up = payload.message === "hand_raised";
      if (me === undefined || me.hand_is_up === hand_is_up) return snapshot;
      return { ...snapshot, me: { ...me, hand_is_up, hand_updated_at: timestamp } };
    }
    case "role_updated": {
      const { state, ...others } = snapshot;
      const kept = payload.new_role === "moderator" && state !== undefined ? { state } : undefined;
      return { ...others, ...kept, ...(me && { me: { ...me, role: payload.new_role } }) };
    }
    case "permissions_changed":
      return withRights(snapshot, payload.may_publish);
    case "microphone_restrictions_enabled":
      return {
        ...snapshot,
        microphoneRestriction: { type: "enabled", unrestricted_participants: payload.unrestricted_participants },
      };
    case "microphone_restrictions_disabled":
      return { ...snapshot, microphoneRestriction: { type: "disabled" } };
    case "state":
      return namespace === "livekit_moderation" ? seen({ ...snapshot, state: viewOf(payload, snapshot.state) }) : snapshot;
    case "state_changed": {
      const { state } = snapshot;
      return state?.version === payload.version - 1 ? seen({ ...snapshot, state: changed(state, payload) }) : snapshot;
    }
    default:
      return snapshot;
  }
}

/** Whether a change cannot be made since one before it is missing, so that the whole state is needed. */
export function isGap(state: StateView | undefined, { version }: StateChanged): boolean {
  return state !== undefined && version > state.version + 1;
}

/** A state with one change made; whoever did not change is the same object. */
function changed(state: StateView, { version, changed: { gone, participants, ...members } }: StateChanged): StateView {
  const next: Mutable<StateView> = { ...state, ...members, version };
  if (gone?.includes("presenter")) delete next.presenter;
  if (participants !== undefined) {
    const people = new Map<string, ParticipantView>(state.participants.map((person) => [person.participant, person]));
    for (const person of participants) {
      if ("gone" in person) people.delete(person.participant);
      else people.set(person.participant, person);
    }
    next.participants = [...people.values()];
  }
  return next;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** The state that an event tells; the one that is there if it is of the same version, and of the same connection. */
function viewOf({ message: _, ...state }: State, before: StateView | undefined): StateView {
  return before?.version === state.version ? before : state;
}

/** With one's own rights as the state has them. */
function seen(snapshot: Snapshot): Snapshot {
  const own = snapshot.state?.participants.find(({ participant }) => participant === snapshot.me?.id);
  return own === undefined ? snapshot : withRights(snapshot, own.may_publish);
}

function withRights(snapshot: Snapshot, may_publish: readonly Source[]): Snapshot {
  const { me } = snapshot;
  if (me === undefined || me.may_publish.join() === may_publish.join()) return snapshot;
  return { ...snapshot, me: { ...me, may_publish } };
}
