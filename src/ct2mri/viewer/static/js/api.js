// The server's calls. Every failure becomes an ApiError whose message is one sentence for a person.

export class ApiError extends Error {}

async function answer(response) {
  if (response.ok) return response.status === 204 ? null : response.json();
  let detail = `The server answered ${response.status}.`;
  try {
    const body = await response.json();
    if (typeof body.detail === "string") detail = body.detail;
  } catch {
    // No JSON: the status has to do.
  }
  throw new ApiError(detail);
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer; see whether `ct2mri view` still runs.");
  }
  return answer(response);
}

export const get = (path) => call(path, {});
export const remove = (path) => call(path, { method: "DELETE" });

export function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(body ?? {}) });
}

/** Puts a file's bytes; `onSent(bytes)` follows them. Fetch cannot tell how far it is, so this is a XMLHttpRequest. */
export function put(path, file, onSent, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "text";
    request.upload.addEventListener("progress", (event) => onSent(event.loaded));
    request.addEventListener("error", () => reject(new ApiError("The server stopped taking the file.")));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    request.addEventListener("load", () => {
      if (request.status >= 200 && request.status < 300) return resolve();
      let detail = `The server refused the file (${request.status}).`;
      try {
        detail = JSON.parse(request.responseText).detail ?? detail;
      } catch {
        // No JSON: the status has to do.
      }
      return reject(new ApiError(detail));
    });
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

/** Follows a job by server-sent events until it has ended; returns what stops following. */
export function follow(id, onJob) {
  const source = new EventSource(`/api/jobs/${encodeURIComponent(id)}/events`);
  source.addEventListener("job", (event) => {
    const job = JSON.parse(event.data);
    if (hasEnded(job)) source.close();
    onJob(job);
  });
  return () => source.close();
}

export const hasEnded = (job) => job.state !== "queued" && job.state !== "running";
