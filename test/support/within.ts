/** Waits for something that may never come, no longer than a test should. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

export async function within<T>(ms: number, what: string, wait: () => Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new assert.AssertionError({ message: `${what} did not come in ${ms} ms` })),
      ms,
    );
  });
  try {
    return await Promise.race([wait(), late]);
  } finally {
    clearTimeout(timer);
  }
}

const soonMs = 10_000;

/** Waits until it is so. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  for (const endMs = performance.now() + soonMs; !condition(); await sleep(1)) {
    assert.ok(performance.now() < endMs, `${what} did not come in ${soonMs} ms`);
  }
}
