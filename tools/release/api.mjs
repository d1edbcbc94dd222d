// The public API of each package as text, from its built declarations: api/<package>.api.md. `--check` compares only.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { publicPackages, readJson, root } from "./stage.mjs";

const printer = ts.createPrinter({ removeComments: true });

/** The file of the report on a package. */
export const reportFile = (name) => join(root, "api", `${name.split("/").at(-1)}.api.md`);

/** The entry points of a package that have declarations: `[[".", "…/dist/index.d.ts"], …]`. */
function entriesOf(dir) {
  return Object.entries(readJson(join(dir, "package.json")).exports ?? {}).flatMap(([path, target]) => {
    const types = target.import?.types;
    return types ? [[path, resolve(dir, types)]] : [];
  });
}

/** The report on the package in `dir`: its exports by entry point and name, then the types that they mention. */
export function apiReport(dir) {
  const { name } = readJson(join(dir, "package.json"));
  const entries = entriesOf(dir);
  const program = ts.createProgram(
    entries.map(([, file]) => file),
    { module: ts.ModuleKind.NodeNext, target: ts.ScriptTarget.ES2022, types: [], skipLibCheck: true },
  );
  const checker = program.getTypeChecker();
  const isOwn = (node) => {
    const file = resolve(node.getSourceFile().fileName);
    return file.startsWith(resolve(dir)) && !file.includes("node_modules");
  };

  const sections = entries.map(([path, file]) => {
    const source = program.getSourceFile(file);
    const symbol = source && checker.getSymbolAtLocation(source);
    if (!symbol) throw new Error(`${name}: no declarations in ${file}`);
    const exported = new Map(); // symbol to name
    const elsewhere = [];
    for (const found of checker.getExportsOfModule(symbol).sort(byName)) {
      const target = found.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(found) : found;
      const declarations = (target.declarations ?? []).filter(isOwn);
      if (declarations.length === 0) elsewhere.push(`//   ${found.name}`);
      else exported.set(target, found.name);
    }
    const lines = [...exported.keys()].flatMap(declarationsOf);
    if (elsewhere.length > 0) lines.push(["// From other packages:", ...elsewhere].join("\n"));

    const mentioned = new Set(exported.keys());
    const visit = (node) => {
      if (ts.isIdentifier(node)) {
        let target = checker.getSymbolAtLocation(node);
        if (target && target.flags & ts.SymbolFlags.Alias) target = checker.getAliasedSymbol(target);
        if (
          target &&
          !mentioned.has(target) &&
          (target.declarations ?? []).some((d) => isOwn(d) && isTopLevel(d))
        ) {
          mentioned.add(target);
          for (const declaration of target.declarations) visit(declaration);
        }
      }
      ts.forEachChild(node, visit);
    };
    for (const target of exported.keys()) for (const declaration of target.declarations) visit(declaration);
    const inner = [...mentioned].filter((target) => !exported.has(target)).sort(byName);
    if (inner.length > 0) lines.push("// Mentioned, not exported:", ...inner.flatMap(declarationsOf));

    const specifier = path === "." ? name : `${name}/${path.slice(2)}`;
    return `## \`${specifier}\`\n\n\`\`\`ts\n${lines.join("\n\n")}\n\`\`\`\n`;

    function declarationsOf(target) {
      return target.declarations.filter(isOwn).map((declaration) => print(declaration, exported.get(target)));
    }
  });
  return `# ${name}\n\n${sections.join("\n")}`;
}

const byName = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

const isTopLevel = (declaration) => {
  const parent = ts.isVariableDeclaration(declaration)
    ? declaration.parent.parent.parent
    : declaration.parent;
  return ts.isSourceFile(parent);
};

/** A declaration without comments; under the name that it is exported by. */
function print(declaration, exportedName) {
  const node = ts.isVariableDeclaration(declaration) ? declaration.parent.parent : declaration;
  const text = printer
    .printNode(ts.EmitHint.Unspecified, node, node.getSourceFile())
    .replace(/^(export )?(declare )?/, "");
  const own = declaration.name?.text;
  return exportedName && own && exportedName !== own ? `// exported as ${exportedName}\n${text}` : text;
}

/** What is wrong with the report on a package: "" where it is the reviewed one. */
export function checkApi(dir, file = reportFile(readJson(join(dir, "package.json")).name)) {
  const { name } = readJson(join(dir, "package.json"));
  const [reviewed, built] = [existsSync(file) ? readFileSync(file, "utf8") : "", apiReport(dir)];
  if (reviewed === built) return "";
  const lines = (text) => new Set(text.split("\n"));
  const [before, after] = [lines(reviewed), lines(built)];
  const changed = [
    ...[...before].filter((line) => !after.has(line)).map((line) => `  - ${line}`),
    ...[...after].filter((line) => !before.has(line)).map((line) => `  + ${line}`),
  ];
  const shown = changed.slice(0, 20).join("\n") + (changed.length > 20 ? "\n  …" : "");
  return `${name}: its public API is not the reviewed one in api/${basename(file)}; review the change: npm run api\n${shown}`;
}

/** The packages that have an API. */
export const withApi = () => publicPackages().filter(({ dir }) => entriesOf(dir).length > 0);

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  let failed = false;
  for (const { name, dir } of withApi()) {
    if (process.argv.includes("--check")) {
      const problem = checkApi(dir);
      if (problem) console.error(problem);
      failed ||= problem !== "";
    } else {
      const file = reportFile(name);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, apiReport(dir));
    }
  }
  if (failed) process.exit(1);
}
