// What a user does with a package: an empty folder, the install line of its README, its first example.
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { transformSync } from "esbuild";
import { readJson, root, tool, writeJson } from "./stage.mjs";
import { assert, run } from "./steps.mjs";

/**
 * The environment of a user who has Node and nothing else: no compiler, no Python, no settings but the registry.
 * @returns the variables of its programs
 */
export function userEnvironment(temp, registry) {
  const [bin, home] = [join(temp, "bin"), join(temp, "home")];
  mkdirSync(bin);
  mkdirSync(home);
  symlinkSync(process.execPath, join(bin, "node"));
  symlinkSync(tool("pnpm"), join(bin, "pnpm"));
  const pathOf = (name) => spawnSync("which", [name], { encoding: "utf8" }).stdout.trim();
  const running = process.env.npm_execpath; // better than what is on the path, which may be a shim that needs more
  const npm = running?.endsWith("npm-cli.js") ? running : pathOf("npm");
  symlinkSync(realpathSync(npm), join(bin, "npm"));
  symlinkSync(pathOf("sh"), join(bin, "sh"));
  const settings = ["fund=false", "audit=false", "update-notifier=false"];
  const token = `//${new URL(registry).host}/:_authToken=rehearsal`;
  writeFileSync(join(home, ".npmrc"), `${[`registry=${registry}`, ...settings, token].join("\n")}\n`);
  return { PATH: bin, HOME: home };
}

/** An empty project in `dir`. */
export function emptyProject(dir) {
  mkdirSync(dir, { recursive: true });
  writeJson(join(dir, "package.json"), { name: "app", version: "1.0.0", private: true });
  writeFileSync(join(dir, "pnpm-workspace.yaml"), "minimumReleaseAge: 0\n"); // pnpm: what was published a minute ago, too
  return dir;
}

/** What the README of a package says to install, and its first example. */
export function readmeOf({ dir, name }) {
  const readme = readFileSync(join(dir, "README.md"), "utf8");
  const line = readme.match(/^npm install ([^#\n]+)/m)?.[1] ?? "";
  const names = line.split(/\s+/).filter((word) => word && !word.startsWith("-"));
  const example = readme.match(/```(?:ts|js)\n([\s\S]*?)```/)?.[1];
  assert(names.includes(name), `no install line in the README of ${name}`);
  return { name, names, example };
}

/** The packages that npm installed in `dir`. */
export const installed = (dir) => {
  const { packages } = readJson(join(dir, "node_modules", ".package-lock.json"));
  const scripts = Object.keys(packages).filter((path) => packages[path].hasInstallScript);
  assert(scripts.length === 0, `install scripts: ${scripts.join(", ")}`);
  return Object.keys(packages);
};

const EXAMPLES = ["example.mjs", "example.cjs"];

/**
 * Compiles the README's example in `dir` as its user would: by TypeScript with strict checks to an ES module, and by hand to
 * CommonJS. Also type-checks a `require` of the package, and its declarations.
 */
export async function compileExample(dir, { name, example }) {
  writeFileSync(join(dir, "example.mts"), example);
  writeFileSync(join(dir, "example.cjs"), toCommonJs(example));
  writeFileSync(join(dir, "main.cts"), `import all = require("${name}");\nconsole.log(Object.keys(all));\n`);
  writeJson(join(dir, "tsconfig.json"), {
    compilerOptions: {
      module: "nodenext",
      target: "es2022",
      lib: ["es2023", "esnext.disposable", "dom"],
      strict: true,
      types: ["node"],
      typeRoots: [join(root, "node_modules", "@types")],
    },
    files: ["example.mts", "main.cts"],
  });
  // Declarations of other packages are checked too, but what is wrong there is not for us to fail on.
  const compiled = await run(tool("tsc"), ["-p", ".", "--pretty", "false"], { cwd: dir }).catch(
    ({ message }) => message,
  );
  const isOthers = (line) => /^[^(]*node_modules\/(?!@moba-js\/|moba-js\/)[^(]*\(\d/.test(line);
  const errors = compiled.split("\n").filter((line) => /error TS/.test(line) && !isOthers(line));
  assert(errors.length === 0, errors.join("\n"));
}

/** An example of ES modules as CommonJS: imports become requires, the rest an async function. */
function toCommonJs(example) {
  const { code } = transformSync(example, { loader: "ts", target: "node20" });
  const requires = [];
  const body = code.replace(/^import\s*\{([^}]*)\}\s*from\s*("[^"]+");$/gm, (_, names, from) => {
    requires.push(`const {${names.replaceAll(" as ", ": ")}} = require(${from});`);
    return "";
  });
  assert(!/^import\b/m.test(body), "the example has imports that are not of names");
  return `${requires.join("\n")}\n(async () => {\n${body}\n})();\n`;
}

/** Runs the compiled examples in `dir`. @returns what they print @throws Error where one warns or prints nothing */
export async function runExamples(dir, env) {
  const printed = await Promise.all(EXAMPLES.map((file) => run(process.execPath, [file], { cwd: dir, env })));
  assert(
    printed.every((text) => text.trim()),
    "an example prints nothing",
  );
  return printed.join("");
}

/** Copies the compiled examples from one project to another. */
export function copyExamples(from, to) {
  for (const file of EXAMPLES) copyFileSync(join(from, file), join(to, file));
}
