/** A short, readable rendering of any value for an error message. */
function show(value: unknown): string {
  if (typeof value === "string")
    return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  if (Array.isArray(value) || ArrayBuffer.isView(value)) {
    const items = Array.from(value as ArrayLike<unknown> & Iterable<unknown>);
    const shown = items.slice(0, 12).map(show).join(", ");
    return `[${shown}${items.length > 12 ? `, ... ${items.length} in all` : ""}]`;
  }
  if (typeof value === "function") return "a function";
  if (typeof value === "object" && value !== null)
    return `an object (${value.constructor?.name ?? "null prototype"})`;
  return String(value);
}

/** The base class of every error that moba-js throws on purpose: `catch (e) { if (e instanceof MobaError) … }`. */
export abstract class MobaError extends Error {
  abstract override readonly name: string;
  /** What was wrong: an argument's name, a file, a device or an operation. */
  readonly argument: string;
  /** The offending value. */
  readonly value: unknown;

  constructor(message: string, argument: string, value: unknown) {
    super(message);
    this.argument = argument;
    this.value = value;
  }
}

/** An argument has the wrong value: out of range, not finite, disposed, of another backend. */
export class ArgumentError extends MobaError {
  readonly name = "ArgumentError";
  constructor(argument: string, value: unknown, expected: string) {
    super(`${argument}: expected ${expected}, got ${show(value)}`, argument, value);
  }
}

/** A tensor or array has the wrong shape or length. `value` is the shape that was given. */
export class ShapeError extends MobaError {
  readonly name = "ShapeError";
  constructor(argument: string, shape: readonly number[], expected: string) {
    super(`${argument}: expected shape ${expected}, got ${show(shape)}`, argument, shape);
  }
}

/** A tensor has the wrong dtype. `value` is the dtype that was given. */
export class DTypeError extends MobaError {
  readonly name = "DTypeError";
  constructor(argument: string, dtype: unknown, expected: string) {
    super(`${argument}: expected dtype ${expected}, got ${show(dtype)}`, argument, dtype);
  }
}

/** A backend does not implement this operation for this dtype; `Backend.supports` tells beforehand. */
export class UnsupportedError extends MobaError {
  readonly name = "UnsupportedError";
  constructor(operation: string, dtype: string, backend: string) {
    super(`${operation}: the ${backend} backend does not support dtype ${dtype}`, operation, dtype);
  }
}

/** A device is missing, lost, closed or out of memory. */
export class DeviceError extends MobaError {
  readonly name = "DeviceError";
  constructor(device: string, reason: string) {
    super(`${device}: ${reason}`, device, reason);
  }
}

/** A file or stream is not what its format says: unreadable, truncated, not UTF-8, out of range. */
export class FormatError extends MobaError {
  readonly name = "FormatError";
  constructor(source: string, reason: string) {
    super(`${source}: ${reason}`, source, reason);
  }
}

/** Tensors outlived the block that {@link leakCheck} watched. `value` lists them. */
export class LeakError extends MobaError {
  readonly name = "LeakError";
  constructor(backend: string, leaks: readonly string[]) {
    super(`${backend}: ${leaks.length} tensor(s) leaked:\n${leaks.join("\n")}`, backend, leaks);
  }
}
