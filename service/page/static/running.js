// What goes on for one part of the page ends when something else is chosen for it. Everything that waits for an answer
// learns so from one signal.

const running = new Map(); // from the name of a part to the controller of what goes on for it

/** Begin something in the place of what went on for this part. Once its signal is aborted, it may show nothing more. */
export function start(part) {
  stop(part);
  const mine = new AbortController();
  running.set(part, mine);
  return mine.signal;
}

export function stop(part) {
  running.get(part)?.abort();
  running.delete(part);
}

export const isRunning = (part) => running.has(part);
