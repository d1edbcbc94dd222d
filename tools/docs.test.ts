import { fileURLToPath } from "node:url";
import ts from "typescript";
import { describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const packages = ["tensor", "reference", "snr", "conformance", "model", "cuda", "webgpu", "moba-js"];
const entryOf = (name: string) => `${root}packages/${name}/src/index.ts`;
const { config } = ts.readConfigFile(`${root}tsconfig.json`, ts.sys.readFile);
const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
const program = ts.createProgram(packages.map(entryOf), options);
const checker = program.getTypeChecker();

const has = (symbol: ts.Symbol, flags: ts.ModifierFlags): boolean =>
  (symbol.declarations ?? []).some((declaration) => (ts.getCombinedModifierFlags(declaration) & flags) !== 0);

/** What a reader of the documentation looks up: the export itself, and the methods and accessors of a class. */
function lookedUp(exported: ts.Symbol): { name: string; symbol: ts.Symbol }[] {
  const isAlias = (exported.flags & ts.SymbolFlags.Alias) !== 0;
  const symbol = isAlias ? checker.getAliasedSymbol(exported) : exported;
  const members = [...(symbol.members?.values() ?? [])].filter(
    (member) =>
      symbol.flags & ts.SymbolFlags.Class &&
      member.flags & (ts.SymbolFlags.Method | ts.SymbolFlags.Accessor) &&
      !/^(__|#)/.test(member.name) && // [symbol] and #private members
      // An override has the comment of the method that it overrides.
      !has(member, ts.ModifierFlags.Private | ts.ModifierFlags.Override),
  );
  const own = { name: exported.name, symbol };
  return [own, ...members.map((member) => ({ name: `${exported.name}.${member.name}`, symbol: member }))];
}

describe.each(packages)("%s", (name) => {
  const source = program.getSourceFile(entryOf(name));
  const module = source && checker.getSymbolAtLocation(source);
  const publicSymbols = module ? checker.getExportsOfModule(module).flatMap(lookedUp) : [];

  it("documents every public export and its methods", () => {
    const isDocumented = (symbol: ts.Symbol) => symbol.getDocumentationComment(checker).length > 0;
    const isInternal = (symbol: ts.Symbol) => symbol.getJsDocTags().some((tag) => tag.name === "internal");
    const missing = publicSymbols.filter(({ symbol }) => !isDocumented(symbol) && !isInternal(symbol));
    expect(publicSymbols.length).toBeGreaterThan(0);
    expect(missing.map((entry) => entry.name)).toEqual([]);
  });

  it("has no `any` in the type of a public value", () => {
    const typeOf = (symbol: ts.Symbol) => {
      const type = symbol.valueDeclaration && checker.getTypeOfSymbol(symbol);
      return type ? checker.typeToString(type, undefined, ts.TypeFormatFlags.NoTruncation) : "";
    };
    const untyped = publicSymbols.filter(({ symbol }) => /\bany\b/.test(typeOf(symbol)));
    expect(untyped.map((entry) => `${entry.name}: ${typeOf(entry.symbol)}`)).toEqual([]);
  });
});
