// What a changelog says of a changeset: its text. All packages move together, so that which versions of the others came
// with a version needs no lines.
module.exports = {
  getReleaseLine: async ({ summary }) => `- ${summary.trim().replaceAll(/\n(?=.)/g, "\n  ")}`,
  getDependencyReleaseLine: async () => "",
};
