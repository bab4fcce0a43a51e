import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build, type Rollup } from "vite";
import { expect, expectTypeOf, test } from "vitest";
import type WebSocketOfNode from "ws";

import { generate } from "../scripts/types.mjs";
import type { SocketClass } from "../src/index.js";

const SOURCES = fileURLToPath(new URL("../src/", import.meta.url));
const LIMIT = 8 * 1024;

test("the types are those of the schemas", () => {
  expect(readFileSync(`${SOURCES}protocol.ts`, "utf8"), "npm run types").toBe(generate());
});

test("minified and compressed, the whole client has 8 KB at most", async () => {
  const built = await build({
    configFile: false,
    logLevel: "silent",
    build: { write: false, minify: true, target: "es2022", lib: { entry: `${SOURCES}index.ts`, formats: ["es"] } },
  });
  const [{ output }] = built as [Rollup.RollupOutput];
  expect(output).toHaveLength(1);
  const bytes = gzipSync(output[0].code, { level: 9 }).length;
  console.info(`gzipped: ${bytes} bytes`);
  expect(bytes).toBeLessThanOrEqual(LIMIT);
  expect(bytes).toBeGreaterThan(1024); // not shaken down to nothing
});

test("nothing is imported but what is here, and nothing is of any type", () => {
  for (const file of readdirSync(SOURCES)) {
    const text = readFileSync(`${SOURCES}${file}`, "utf8");
    for (const [, module] of text.matchAll(/from "([^"]+)"/g)) expect(module).toMatch(/^\.\/\w+\.js$/);
    expect(text, file).not.toMatch(/(:|<|\bas|=|\|) any\b/);
  }
});

test("the sockets of browsers and of the package ws are ones", () => {
  expectTypeOf<typeof WebSocket>().toExtend<SocketClass>();
  expectTypeOf<typeof WebSocketOfNode>().toExtend<SocketClass>();
});
