/**
 * Watches a descriptor from the JavaScript event loop. The one place that uses koffi's poll (libuv's
 * uv_poll): it is not documented as stable, and it has traps of its own.
 */
import koffi from 'koffi';

export interface FdWatcher {
  /** Ends the watch. The descriptor may be closed afterwards; it is not closed here. */
  close(): void;
}

/** Live handles: a watch that nothing references is collected, and the process ends as if it had no work. */
const live = new Set<unknown>();

/**
 * Calls `onReadable` whenever the descriptor can be read (level triggered) or has hung up. The call comes
 * on a turn of its own, because Node 26 runs no microtasks after a poll callback.
 */
export function watchReadable(fd: number, onReadable: () => void): FdWatcher {
  let closed = false;
  let scheduled = false;
  const handle = koffi.node.poll(fd, { readable: true, writable: false, disconnect: false }, () => {
    if (closed || scheduled) {
      return;
    }
    scheduled = true;
    setImmediate(() => {
      scheduled = false;
      if (!closed) {
        onReadable();
      }
    });
  });
  live.add(handle);
  return {
    close(): void {
      if (!closed) {
        closed = true;
        live.delete(handle);
        handle.close();
      }
    },
  };
}
