/** How long jobs wait for storage that does not answer. */
import { setTimeout as delay } from 'node:timers/promises';
import { VduseError } from '../../base/errors.js';

const retryMs = 1000;

/**
 * Runs a change of the graph that lasting requests may make time out, until it is done: between the attempts the users
 * go on, and so do others who change the graph.
 */
export async function untilDrained(change: () => Promise<void>): Promise<void> {
  for (;;) {
    try {
      return await change();
    } catch (error) {
      if (!(error instanceof VduseError) || error.code !== 'TIMEOUT') {
        throw error;
      }
    }
    await delay(retryMs);
  }
}

/** Throws TIMEOUT with these words when the event does not come in time. What becomes of it later is nobody's business. */
export async function within(event: Promise<void>, ms: number, missing: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<never>((_, giveUp) => {
    timer = setTimeout(
      () => giveUp(new VduseError('TIMEOUT', `${missing} in ${ms / 1000} s: storage does not answer`)),
      ms,
    );
  });
  event.catch(() => undefined);
  try {
    await Promise.race([event, over]);
  } finally {
    clearTimeout(timer);
  }
}
