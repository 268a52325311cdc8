/** One reactor on the main thread's event loop, for all who make requests from there. */
import { Reactor } from './reactor.js';

let shared: Reactor | undefined;
let users = 0;

/** Takes part in the main thread's reactor; `releaseEventLoopReactor` when done. */
export function acquireEventLoopReactor(): Reactor {
  if (shared === undefined) {
    const reactor = new Reactor();
    reactor.attachToEventLoop();
    shared = reactor;
  }
  users += 1;
  return shared;
}

export function releaseEventLoopReactor(): void {
  users -= 1;
  // Later: this may be called from inside a turn, and the next user may be there already.
  setImmediate(() => {
    if (users === 0 && shared !== undefined) {
      shared.close();
      shared = undefined;
    }
  });
}
