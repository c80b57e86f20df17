// The model behind the server of this page, in place of model.mjs.

export class Refused extends Error {}

export async function load() {
  const health = await fetch("health");
  if (!health.ok) throw new Error("The server is not ready.");
}

export async function classify(file) {
  const form = new FormData();
  form.append("image", file, file.name);
  const response = await fetch("predict", { method: "POST", body: form }).catch(() => {
    throw new Refused("The server does not answer, or the file cannot be read any more.");
  });
  const answer = await response.json();
  const row = answer.predictions?.[0];
  if (row === undefined || row.error) throw new Refused(row?.error ?? answer.error);
  const labels = Array.isArray(row.predicted) && { labels: row.predicted };
  const ranked = row.top.map((one) => [one.class, one.probability]);
  return { ranked, notes: [], ...labels, ...("unknown_score" in row && { unknownScore: row.unknown_score }) };
}
