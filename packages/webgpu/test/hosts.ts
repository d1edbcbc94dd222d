import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { wgsl } from "../tools/wgsl.js";
import type * as scenarios from "./scenarios.js";

type Scenarios = typeof scenarios;
type Result<N extends keyof Scenarios> = Awaited<ReturnType<Scenarios[N]>>;
type Input<N extends keyof Scenarios> = Parameters<Scenarios[N]>[0];

/** A place where scenarios run. */
export interface Host {
  /** Runs a scenario in a fresh process or page. @throws Error with what it throws. */
  run<N extends keyof Scenarios>(name: N, input: Input<N>): Promise<Result<N>>;
}

const folder = fileURLToPath(new URL("..", import.meta.url));
const source = (name: string) => fileURLToPath(new URL(`../../${name}/src/index.ts`, import.meta.url));

/** Bundles code for Node or for a page, as a user's bundler would after this package's build. */
export async function bundle(code: string, platform: "node" | "browser"): Promise<string> {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: fileURLToPath(new URL(".", import.meta.url)), loader: "ts" },
    bundle: true,
    minify: true,
    write: false,
    format: "esm",
    target: "es2022",
    platform,
    plugins: [wgsl],
    alias: Object.fromEntries(
      ["tensor", "reference", "conformance", "model", "snr"].map((name) => [
        `@moba-js/${name}`,
        source(name),
      ]),
    ),
  });
  return outputFiles[0].text;
}

/** Bytes of code after minifying and gzip. */
export const bundledSize = async (code: string): Promise<number> =>
  gzipSync(await bundle(code, "browser")).length;

/** Chromium: named in CHROMIUM, or on the path. */
const browser =
  process.env.CHROMIUM ??
  spawnSync("which", ["chromium", "google-chrome"], { encoding: "utf8" }).stdout.split("\n")[0];

/** The folder of Chromium's own Vulkan driver for the CPU, SwiftShader. */
const driverFolder = [dirname(browser), "/usr/lib/chromium", "/opt/google/chrome"].find((path) =>
  existsSync(`${path}/vk_swiftshader_icd.json`),
);

/** Where Node's WebGPU finds a device: the one that the environment names, or SwiftShader. */
const driver = process.env.VK_DRIVER_FILES
  ? {}
  : driverFolder && {
      VK_DRIVER_FILES: `${driverFolder}/vk_swiftshader_icd.json`,
      LD_LIBRARY_PATH: [driverFolder, process.env.LD_LIBRARY_PATH].filter(Boolean).join(":"),
    };

// CI must not skip what it is there to test.
const mayMiss = !process.env.CI;

/** Why the tests in Node cannot run here, if so. */
export const nodeLacks =
  mayMiss && !driver ? "no Vulkan driver (install Chromium, or name one in VK_DRIVER_FILES)" : "";
/** Why the tests in a browser cannot run here, if so. */
export const browserLacks = mayMiss && !browser ? "no Chromium (install one, or name it in CHROMIUM)" : "";

/** Deno: named in DENO, or on the path. */
const deno = process.env.DENO ?? spawnSync("which", ["deno"], { encoding: "utf8" }).stdout.trim();

/** Why the tests in Deno cannot run here, if so. */
export const denoLacks = deno ? (driver ? "" : nodeLacks) : "no Deno (install it, or name it in DENO)";

/** Scenarios in a fresh process of Node, whose WebGPU is the package `webgpu`. */
export const nodeHost = (): Promise<Host> =>
  processHost(process.execPath, ["--input-type=module", "-"], "node");

/** Scenarios in a fresh process of Deno, which has a WebGPU of its own (wgpu). */
export const denoHost = (): Promise<Host> =>
  processHost(deno, ["run", "--allow-all", "--unstable-webgpu", "-"], "browser");

/** Scenarios in fresh processes of a command that reads a module from its standard input. */
async function processHost(
  command: string,
  options: readonly string[],
  platform: "node" | "browser",
): Promise<Host> {
  const code = await bundle(`export * from "./scenarios.ts"`, platform);
  return {
    run: (name, input) =>
      new Promise((resolve, reject) => {
        // In this package's folder, so that packages resolve as they do for this one.
        const child = spawn(command, options, {
          cwd: folder,
          env: { ...process.env, ...driver },
          stdio: ["pipe", "pipe", "pipe"],
        });
        let [output, errors] = ["", ""];
        child.stdout.on("data", (text) => {
          output += text;
        });
        child.stderr.on("data", (text) => {
          errors += text;
        });
        child.on("close", (status) => {
          const line = output.split("\n").find((each) => each.startsWith(MARK));
          if (line) resolve(JSON.parse(line.slice(MARK.length)));
          else reject(new Error(`${name} ended with ${status}: ${errors}`));
        });
        const call = `const result = await run(${JSON.stringify(input)}).catch(({ stack }) => {
            process.stderr.write(stack, () => process.exit(1));
            return new Promise(() => undefined);
          });
          process.stdout.write("\\n${MARK}" + JSON.stringify(result) + "\\n", () => process.exit(0));`;
        child.stdin.end(
          code.replace(/export\s*\{([^}]*)\};?\s*$/, (_, names) => `${renamed(names, name)}\n${call}`),
        );
      }),
  };
}

const MARK = "result: ";

/** `const run = x` for the local name `x` of an export. */
function renamed(names: string, name: string): string {
  const pair = names.split(",").find((each) => each.trim().endsWith(`as ${name}`) || each.trim() === name);
  if (!pair) throw new Error(`${name} is no scenario`);
  return `const run = ${pair.trim().split(" ")[0]};`;
}

/** Nothing but scripts of the page's own server: no eval, nothing inline. */
const POLICY = "default-src 'none'; script-src 'self'; base-uri 'none'; form-action 'none'";

/** Scenarios in a fresh page of headless Chromium, served with a strict Content-Security-Policy. */
export async function browserHost(): Promise<Host & { close(): Promise<void> }> {
  const code = await bundle(
    `import * as scenarios from "./scenarios.ts"; Object.assign(globalThis, { scenarios });`,
    "browser",
  );
  const server = createServer((request, response) => {
    const isScript = request.url === "/scenarios.js";
    response.setHeader("Content-Type", isScript ? "text/javascript" : "text/html");
    response.setHeader("Content-Security-Policy", POLICY);
    response.end(isScript ? code : `<!doctype html><script type="module" src="/scenarios.js"></script>`);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const instance = await chromium.launch({
    executablePath: browser,
    args: [
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
      // SwiftShader compiles the zeroing of workgroup memory store by store: 15 times slower than all the rest.
      "--enable-dawn-features=disable_workgroup_init",
    ],
  });
  return {
    async run<N extends keyof Scenarios>(name: N, input: Input<N>): Promise<Result<N>> {
      const page = await instance.newPage();
      const problems: string[] = [];
      page.on("pageerror", (error) => problems.push(error.message));
      page.on("console", (message) => {
        if (message.text().includes("Content Security Policy")) problems.push(message.text());
      });
      try {
        await page.goto(`http://127.0.0.1:${port}/`);
        const result = await page.evaluate(`scenarios.${name}(${JSON.stringify(input)})`);
        if (problems.length > 0) throw new Error(problems.join("\n"));
        return result as Result<N>;
      } finally {
        await page.close();
      }
    },
    async close() {
      await instance.close();
      server.close();
    },
  };
}
