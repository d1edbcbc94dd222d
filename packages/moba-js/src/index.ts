export * from "@moba-js/model";
export * from "@moba-js/reference";
export * from "@moba-js/snr";
export * from "@moba-js/tensor";
export { type BackendName, type BackendProbe, openBackend, probeBackends } from "./open.js";
