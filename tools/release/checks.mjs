// Checks of packed packages, each on its own: exports map, types, dependencies, sizes.
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { builtinModules } from "node:module";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { checkPackage, createPackageFromTarballData } from "@arethetypeswrong/core";
import { build } from "esbuild";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import ts from "typescript";
import { readJson } from "./stage.mjs";

const BUDGETS = readJson(new URL("budgets.json", import.meta.url));

/** What publint and "Are the types wrong" say of a tarball. Resolution without exports maps (node10) is not supported. */
export async function checkExports(tarball) {
  const data = readFileSync(tarball);
  const buffer = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  const { messages, pkg } = await publint({ pack: { tarball: buffer } });
  const problems = messages.map((message) => `publint: ${formatMessage(message, pkg, { color: false })}`);
  const types = await checkPackage(createPackageFromTarballData(data));
  if (!types.types) return pkg.exports?.["."] ? [...problems, "attw: no types"] : problems;
  for (const problem of types.problems) {
    if (problem.resolutionKind === "node10") continue;
    const { kind, entrypoint, resolutionKind, fileName, moduleSpecifier } = problem;
    problems.push(
      `attw: ${[kind, entrypoint, resolutionKind, fileName, moduleSpecifier].filter(Boolean).join(" ")}`,
    );
  }
  return problems;
}

/** What every package has, and this one does not: fields of its manifest, a README, a licence, source maps. */
export function checkFiles(dir) {
  const manifest = readJson(join(dir, "package.json"));
  const fields = ["description", "license", "engines", ...(manifest.exports?.["."] ? ["sideEffects"] : [])];
  const code = filesOf(join(dir, "dist")).filter((path) => /\.c?js$/.test(path));
  const files = ["README.md", "LICENSE", ...code.map((path) => join("dist", `${path}.map`))];
  return [
    ...fields.filter((name) => !(name in manifest)).map((name) => `no ${name} in package.json`),
    ...files.filter((name) => !existsSync(join(dir, name))).map((name) => `no ${name}`),
  ];
}

/** Imports in the published code and declarations that the package does not declare, or ranges that only a workspace has. */
export function checkImports(dir) {
  const manifest = readJson(join(dir, "package.json"));
  const { name, dependencies, optionalDependencies, peerDependencies } = manifest;
  const declared = { ...dependencies, ...optionalDependencies, ...peerDependencies };
  const problems = Object.entries(declared)
    .filter(([, range]) => /^(workspace|catalog|file|link):/.test(range))
    .map(([dependency, range]) => `${dependency} has the range ${range}`);
  const allowed = new Set([name, ...Object.keys(declared), ...builtinModules]);
  for (const file of filesOf(join(dir, "dist")).filter((path) => /\.(d\.)?[cm]?[jt]s$/.test(path))) {
    const { importedFiles, typeReferenceDirectives } = ts.preProcessFile(
      readFileSync(join(dir, "dist", file), "utf8"),
      true,
      true,
    );
    for (const { fileName } of [...importedFiles, ...typeReferenceDirectives]) {
      if (fileName.startsWith(".") || fileName.startsWith("node:")) continue;
      const [scope, rest] = fileName.split("/");
      const imported = scope.startsWith("@") ? `${scope}/${rest}` : scope;
      if (!allowed.has(imported)) problems.push(`dist/${file} imports ${imported}, which is no dependency`);
    }
  }
  return problems;
}

const filesOf = (dir) => {
  try {
    return readdirSync(dir, { recursive: true });
  } catch {
    return []; // a package without code
  }
};

/** The sizes of a package, in bytes: packed, and its entry bundled without dependencies, minified, after gzip. */
export async function sizesOf(tarball, dir) {
  const { exports, dependencies, peerDependencies, optionalDependencies } = readJson(
    join(dir, "package.json"),
  );
  const packed = statSync(tarball).size;
  const entry = exports?.["."]?.import?.default;
  if (!entry) return { packed };
  const { outputFiles } = await build({
    entryPoints: [join(dir, entry)],
    bundle: true,
    minify: true,
    write: false,
    format: "esm",
    platform: "node",
    logLevel: "error",
    external: Object.keys({ ...dependencies, ...peerDependencies, ...optionalDependencies }),
  });
  return { packed, entry: gzipSync(outputFiles[0].contents).length };
}

/** The sizes that are over the budgets of `budgets.json`. */
export async function checkSize(tarball, dir, budgets = BUDGETS) {
  const { name } = readJson(join(dir, "package.json"));
  const budget = budgets[name];
  if (!budget) return ["no size budget in tools/release/budgets.json"];
  return Object.entries(await sizesOf(tarball, dir))
    .filter(([what, bytes]) => bytes > (budget[what] ?? 0))
    .map(([what, bytes]) => `${what} has ${bytes} bytes, the budget is ${budget[what] ?? 0}`);
}
