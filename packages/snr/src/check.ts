import { ArgumentError } from "@moba-js/tensor";

/** Throws unless `value` is a finite number greater than zero. */
export function checkPositive(argument: string, value: number): void {
  if (!(value > 0 && value < Infinity)) throw new ArgumentError(argument, value, "a finite number > 0");
}

/** Throws unless `value` is a finite number. */
export function checkFinite(argument: string, value: number): void {
  if (!Number.isFinite(value)) throw new ArgumentError(argument, value, "a finite number");
}

/** Throws unless `value` is an integer of at least `least`. */
export function checkInteger(argument: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new ArgumentError(argument, value, `an integer >= ${least}`);
  }
}

/** Throws unless `value` is a probability in [0, 1]. */
export function checkProbability(argument: string, value: number): void {
  if (!(value >= 0 && value <= 1)) throw new ArgumentError(argument, value, "a number in [0, 1]");
}

/** Throws unless `value` lies strictly between 0 and 1. */
export function checkOpenProbability(argument: string, value: number): void {
  if (!(value > 0 && value < 1))
    throw new ArgumentError(argument, value, "a number strictly between 0 and 1");
}
