// Builds the addon into dist/addon/<platform>-<arch>.node, or says why it cannot: the package is whole without it, and
// opening a device then says what is missing.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const addon = fileURLToPath(new URL("../addon", import.meta.url));
const target = fileURLToPath(
  new URL(`../dist/addon/${process.platform}-${process.arch}.node`, import.meta.url),
);

const changed = (file) => statSync(file).mtimeMs;
const sources = readdirSync(addon).filter((name) => /\.(cc|h|gyp)$/.test(name));
if (existsSync(target) && sources.every((name) => changed(join(addon, name)) < changed(target))) {
  console.log("addon: nothing has changed");
  process.exit(0);
}

const skip = (reason) => {
  console.log(`addon: not built: ${reason}`);
  process.exit(0);
};
const runs = (command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;

if (process.platform !== "linux") skip(`it is for Linux, this is ${process.platform}`);
if (!runs("python3")) skip("node-gyp needs Python (python3)");
if (!runs(process.env.CXX ?? "g++") || !runs("make")) skip("it needs a C++ compiler (g++) and make");

// The headers that came with this Node, where they did; else node-gyp fetches them.
const prefix = dirname(dirname(process.execPath));
const headers = existsSync(join(prefix, "include", "node", "node_api.h")) ? [`--nodedir=${prefix}`] : [];
const gyp = createRequire(import.meta.url).resolve("node-gyp/bin/node-gyp.js");
const build = spawnSync(process.execPath, [gyp, "-C", addon, "configure", "build", ...headers], {
  encoding: "utf8",
});
if (build.status !== 0) skip(`node-gyp failed:\n${build.stdout}${build.stderr}`);
mkdirSync(dirname(target), { recursive: true });
copyFileSync(join(addon, "build", "Release", "moba_cuda.node"), target);
console.log(`addon: ${target}`);
