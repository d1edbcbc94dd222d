// A real npm registry (verdaccio) on this machine, for as long as the rehearsal runs. Other packages come through it from
// the registry that npm is set to; those of this workspace come from the rehearsal only.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { root, writeJson } from "./stage.mjs";

const VERSION = "6.8.0";

/** The folder of verdaccio, installed on first use. */
function install() {
  const dir = join(root, ".cache", `verdaccio-${VERSION}`);
  if (existsSync(join(dir, "node_modules", ".package-lock.json"))) return dir;
  mkdirSync(dir, { recursive: true });
  // One of its dependencies is asked for by a tag that not every registry keeps.
  const overrides = { "node-fetch": "2.7.0" };
  writeJson(join(dir, "package.json"), { private: true, dependencies: { verdaccio: VERSION }, overrides });
  execFileSync("npm", ["install", "--no-audit", "--no-fund", "--loglevel=error"], {
    cwd: dir,
    stdio: "pipe",
  });
  return dir;
}

const freePort = () =>
  new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject).listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

/** Whether the registry that npm is set to answers. */
export const reachesRegistry = () =>
  spawnSync("npm", ["view", `verdaccio@${VERSION}`, "version", "--fetch-retries=1"]).status === 0;

/** Starts a registry that keeps its files in `dir`; it ends with this process. */
export async function startRegistry(dir) {
  const program = join(install(), "node_modules", "verdaccio", "bin", "verdaccio");
  const upstream = execFileSync("npm", ["config", "get", "registry"], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  }).trim();
  mkdirSync(dir, { recursive: true });
  const open = { access: "$all", publish: "$all" };
  // Verdaccio reads YAML, and JSON is YAML.
  writeJson(join(dir, "config.yaml"), {
    storage: join(dir, "storage"),
    auth: { htpasswd: { file: join(dir, "htpasswd") } },
    uplinks: { upstream: { url: upstream, timeout: "60s", max_fails: 20 } },
    packages: { "@moba-js/*": open, "moba-js": open, "**": { access: "$all", proxy: "upstream" } },
    max_body_size: "100mb",
    web: { enable: false },
    log: { type: "stdout", format: "pretty", level: "warn" },
  });
  writeFileSync(join(dir, "htpasswd"), "");

  const log = join(dir, "log");
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"];
  for (const signal of signals) process.once(signal, () => process.exit(1)); // which stops it
  for (let attempt = 1; attempt <= 3; attempt++) {
    const port = await freePort(); // another program may take it before the registry does
    const args = [program, "--config", join(dir, "config.yaml"), "--listen", `127.0.0.1:${port}`];
    const output = openSync(log, "w");
    const server = spawn(process.execPath, args, { stdio: ["ignore", output, output] });
    process.once("exit", () => server.kill());
    const url = `http://127.0.0.1:${port}/`;
    if (await answers(server, `${url}-/ping`)) return { url };
    server.kill();
  }
  throw new Error(`the registry does not start:\n${readFileSync(log, "utf8")}`);
}

/** Waits until `server` answers at `url`; not for longer than it runs, or than two minutes. */
async function answers(server, url) {
  const end = Date.now() + 120_000;
  while (server.exitCode === null && Date.now() < end) {
    const answer = await fetch(url).catch(() => undefined);
    if (answer?.ok) return true;
    await setTimeout(100);
  }
  return false;
}
