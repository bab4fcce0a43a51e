export type { CommandOptions } from "./answers.js";
export { type ClientEvents, connect, type ConnectOptions, ModerationClient } from "./client.js";
export type { Commands, Fields } from "./commands.js";
export type { Connection, Ended, Loss, Present, Socket, SocketClass, Underway } from "./connection.js";
export * from "./errors.js";
export type * from "./protocol.js";
export type { Me, MicrophoneRestriction, Snapshot } from "./snapshot.js";
