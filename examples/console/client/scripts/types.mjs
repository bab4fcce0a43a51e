/**
 * `npm run types`: the types of every message, out of the JSON Schemas of the protocol, in `src/protocol.ts`.
 *
 * The schemas use a small part of the language (objects, arrays, enumerations, references, alternatives); whatever else
 * they come to use is refused here, so that nobody gets a type that is too wide without knowing.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/**
 * @typedef {object} Schema
 * @property {string} [$ref]
 * @property {string} [title]
 * @property {string} [description]
 * @property {string} [type]
 * @property {string | number | boolean} [const]
 * @property {(string | number | boolean)[]} [enum]
 * @property {Schema} [items]
 * @property {number} [maxItems]
 * @property {Record<string, Schema>} [properties]
 * @property {string[]} [required]
 * @property {Schema[]} [oneOf]
 * @property {Schema[]} [anyOf]
 * @property {unknown} [default]
 * @property {number} [minimum]
 * @property {number} [maximum]
 * @property {number} [maxLength]
 * @property {Record<string, Schema>} [$defs]
 */
/** @typedef {{ namespace: string, name: string, direction: "command" | "event", type: string, schema: Schema }} Message */

const SCHEMAS = fileURLToPath(new URL("../../../../schemas/", import.meta.url));
const GENERATED = fileURLToPath(new URL("../src/protocol.ts", import.meta.url));

/** Enumerations that have a name of their own: where one is found, and what is said of it. */
const NAMED_ENUMERATIONS = [
  ["Role", "ControlData", "role", "What somebody may do: moderators command."],
  ["Kind", "ControlData", "participation_kind", "How somebody takes part."],
  ["StrangerKind", "StrangerView", "kind", "What LiveKit calls somebody who never joined the signaling."],
  ["Source", "RestrictionView", "source", "What a medium is declared to be; screen sharing has two, which go together."],
  ["RestrictableSource", "Restrict", "source", "What moderators restrict, block and stop; `screen_share` is its sound too."],
  ["BlockCause", "BlockView", "cause", "Why somebody may not publish a source."],
  ["PermissionCause", "PermissionsChanged", "cause", "Why somebody may publish something else than before."],
  ["LeaveReason", "Left", "reason", "Why somebody is gone."],
  ["OutcomeName", "Outcome", "outcome", "What a command came to for one person."],
  ["OutcomeError", "Outcome", "error", "Why it failed for one person."],
  ["ResultErrorCode", "Result", "error", "Why a command was refused, or did not reach everybody."],
  ["ControlErrorCode", "ControlError", "error", "Why a command of `control` was refused."],
];

/** Messages whose title another one has too. */
/** @type {Record<string, string>} */
const RENAMED = {
  "moderation/kicked.event": "KickedFarewell",
  "moderation/banned.event": "BannedFarewell",
};

const UNDERSTOOD = new Set(
  ("$schema $id $ref $defs title description type const enum items properties required oneOf anyOf default examples " +
    "minItems maxItems uniqueItems minimum maximum minLength maxLength pattern format not additionalProperties").split(" "),
);

/** @type {Map<string, string>} */
const enumerations = new Map();

/** @returns {Message[]} */
function readMessages() {
  const messages = [];
  for (const file of readdirSync(SCHEMAS, { recursive: true, encoding: "utf8" }).sort()) {
    const found = /^(\w+)[/\\](\w+)\.(command|event)\.json$/.exec(file);
    if (found === null) continue;
    const [, namespace = "", name = "", direction] = found;
    /** @type {Schema} */
    const schema = JSON.parse(readFileSync(`${SCHEMAS}${file}`, "utf8"));
    const type = RENAMED[`${namespace}/${name}.${direction}`] ?? schema.title ?? "";
    messages.push({ namespace, name, direction: /** @type {"command" | "event"} */ (direction), type, schema });
  }
  return messages;
}

/**
 * A schema as a type.
 * @param {Schema} schema
 * @returns {string}
 */
function typeOf(schema) {
  for (const key of Object.keys(schema)) {
    if (!UNDERSTOOD.has(key)) throw new Error(`the schemas use ${key}, which this script does not understand`);
  }
  if (schema.$ref !== undefined) return schema.$ref.replace(/^#\/\$defs\//, "");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum !== undefined) {
    const values = schema.enum.map((value) => JSON.stringify(value)).join(" | ");
    return enumerations.get(values) ?? values;
  }
  const alternatives = schema.anyOf ?? schema.oneOf;
  if (alternatives !== undefined && schema.properties === undefined) {
    return alternatives.map(typeOf).join(" | ");
  }
  switch (schema.type) {
    case "array": {
      if (schema.maxItems === 0) return "readonly []";
      const items = typeOf(schema.items ?? {});
      return `readonly ${/[ |]/.test(items) ? `(${items})` : items}[]`;
    }
    case "integer":
    case "number":
      return "number";
    case "string":
    case "boolean":
    case "null":
      return schema.type;
    default:
      throw new Error(`a schema has the type ${schema.type}, which this script does not understand`);
  }
}

/**
 * What is said of a type or a field, as a comment.
 * @param {string | undefined} description
 * @param {string} [indent]
 */
function comment(description, indent = "") {
  if (description === undefined || description === "") return "";
  const lines = description.split("\n");
  if (lines.length === 1) return `${indent}/** ${lines[0]} */\n`;
  return `${indent}/**\n${lines.map((line) => `${indent} * ${line}`.trimEnd()).join("\n")}\n${indent} */\n`;
}

/**
 * What is to be known of a field beyond its type.
 * @param {Schema} schema
 */
function remark(schema) {
  const remarks = schema.description === undefined ? [] : [schema.description];
  if (schema.minimum !== undefined && schema.maximum !== undefined) remarks.push(`${schema.minimum} to ${schema.maximum}.`);
  if (schema.type === "string" && schema.maxLength !== undefined) remarks.push(`${schema.maxLength} characters at most.`);
  if (schema.default !== undefined) remarks.push(`If left out: \`${JSON.stringify(schema.default)}\`.`);
  return remarks.join(" ");
}

/**
 * An object as an interface; one of which exactly one of several fields is needed, as those alternatives.
 * @param {string} name
 * @param {Schema} schema
 * @param {boolean} isSent Whether it is ours to send: then a field may be `undefined`, which JSON leaves out.
 */
function declaration(name, schema, isSent) {
  const properties = Object.entries(schema.properties ?? {});
  if (properties.length === 0) return `${comment(schema.description)}export type ${name} = Readonly<Record<string, never>>;\n`;
  const oneOf = (schema.oneOf ?? []).flatMap((alternative) => alternative.required ?? []);
  /** @param {string} indent @param {[string, Schema]} property @param {boolean} isRequired */
  const field = (indent, [key, property], isRequired) =>
    `${comment(remark(property), indent)}${indent}readonly ${key}${isRequired ? "" : "?"}: ${typeOf(property)}` +
    `${isSent && !isRequired ? " | undefined" : ""};\n`;
  const fixed = properties.filter(([key]) => !oneOf.includes(key));
  const body = fixed.map((property) => field("  ", property, schema.required?.includes(property[0]) ?? false)).join("");
  if (oneOf.length === 0) return `${comment(schema.description)}export interface ${name} {\n${body}}\n`;
  const alternatives = oneOf.map((needed) => {
    const fields = properties.filter(([key]) => oneOf.includes(key));
    return fields
      .map((property) => (property[0] === needed ? field("      ", property, true) : `      readonly ${property[0]}?: undefined;\n`))
      .join("");
  });
  return (
    `${comment(schema.description)}export type ${name} = {\n${body}} & (\n` +
    `${alternatives.map((fields) => `  | {\n${fields}    }\n`).join("")});\n`
  );
}

/**
 * The objects and names that messages refer to, each once.
 * @param {Message[]} messages
 */
function definitions(messages) {
  /** @type {Map<string, { schema: Schema, isSent: boolean }>} */
  const found = new Map();
  const titles = new Set(messages.map(({ type }) => type));
  for (const { schema, direction } of messages) {
    for (const [name, definition] of Object.entries(schema.$defs ?? {})) {
      if (!titles.has(name)) found.set(name, { schema: definition, isSent: direction === "command" });
    }
  }
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1));
}

/** @param {Message[]} messages */
function nameEnumerations(messages) {
  const declarations = [];
  for (const [name, owner, property, description] of NAMED_ENUMERATIONS) {
    const schema = messages
      .flatMap(({ type, schema }) => [[type, schema], ...Object.entries(schema.$defs ?? {})])
      .find(([title]) => title === owner)?.[1];
    const values = typeof schema === "object" ? schema.properties?.[property ?? ""]?.enum : undefined;
    if (values === undefined) throw new Error(`${owner}.${property} is no enumeration any more`);
    const type = values.map((value) => JSON.stringify(value)).join(" | ");
    enumerations.set(type, name ?? "");
    const lines = type.length > 80 ? `\n  | ${type.replaceAll(" | ", "\n  | ")}` : ` ${type}`;
    declarations.push(`${comment(description)}export type ${name} =${lines};\n`);
  }
  return declarations;
}

/** The whole of `src/protocol.ts`. */
export function generate() {
  const messages = readMessages();
  const commands = messages.filter(({ direction }) => direction === "command");
  const events = messages.filter(({ direction }) => direction === "event");
  const parts = [
    "// The messages of the protocol, made of schemas/ by `npm run types`. Not to be edited by hand.\n",
    ...nameEnumerations(messages),
  ];
  for (const [name, { schema, isSent }] of definitions(messages)) {
    parts.push(
      schema.properties === undefined
        ? `${comment(schema.description)}export type ${name} = ${typeOf(schema)};\n`
        : declaration(name, schema, isSent),
    );
  }
  for (const { type, schema, direction } of messages) parts.push(declaration(type, schema, direction === "command"));

  const namespaces = [...new Set(messages.map(({ namespace }) => namespace))];
  /** @param {Message[]} of @param {string} namespace */
  const union = (of, namespace) => {
    const types = of.filter((message) => message.namespace === namespace).map(({ type }) => type);
    return types.length > 4 ? `\n        | ${types.join("\n        | ")}` : ` ${types.join(" | ")}`;
  };
  /** @param {Message[]} of @param {string} more */
  const frames = (of, more) =>
    namespaces
      .filter((namespace) => of.some((message) => message.namespace === namespace))
      .map((namespace) => `  | {\n      readonly namespace: "${namespace}";\n${more}      readonly payload:${union(of, namespace)};\n    }`)
      .join("\n");
  parts.push(
    "/** Chosen by the client; the sender's own copies of what a command caused carry it back. */\n" +
      "export type TransactionId = number | string;\n",
    `/** Every command, with the namespace that it belongs to. */\nexport type Command =\n${frames(commands, "")};\n`,
    "/** A frame from the server: an event, and the namespace that it belongs to. */\nexport type ServerFrame =\n" +
      `${frames(events, "      readonly timestamp: Timestamp;\n      readonly transaction_id?: TransactionId;\n")};\n`,
    "/** Every event of the server, by namespace and name. */\nexport interface ServerEvents {\n" +
      events.map(({ namespace, name, type, schema }) => `${comment(schema.description, "  ")}  "${namespace}/${name}": ${type};\n`).join("") +
      "}\n",
  );
  return parts.join("\n");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(GENERATED, generate());
