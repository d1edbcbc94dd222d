import type { Backend, FloatDType, Operation } from "@moba-js/tensor";
import type { Outcome } from "./report.js";

/** What checks are made for. */
export interface Subject {
  readonly backend: Backend;
  readonly dtype: FloatDType;
  readonly seed: number;
}

/** One case of a group, ready to run. */
export interface Check {
  /** The case in words. */
  readonly title: string;
  /** Operations that the backend must support for the case to make sense. */
  readonly needs: readonly Operation[];
  run(): Promise<Outcome[]>;
}
