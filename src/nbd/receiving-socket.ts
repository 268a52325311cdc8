// Hot: synchronous, and a read of the socket allocates one view.
/**
 * A client's socket whose bytes come into memory that its reader names. Node makes a buffer of 64 KiB for each read
 * of a socket otherwise: collecting those would take a third of a server's time, and a payload would be copied once
 * more on its way to where it belongs.
 */
import { type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { duplicateFd } from '../native/fd.js';

export interface SocketReader {
  /** Where the next bytes go. Asked after each onReceived, and used until it is asked again. */
  place(): Uint8Array;
  /** The first `count` bytes of the place were filled. */
  onReceived(count: number): void;
}

/**
 * Takes over a socket that a server has accepted. Only a socket that is made around a descriptor can be told where
 * to read to, so this is another one, of the same connection; the accepted one is closed. Throws SYSTEM_CALL where
 * the process may have no more descriptors.
 */
export function receiveInto(accepted: Socket, reader: SocketReader): Socket {
  // Node has no public name for the descriptor of a socket.
  const { _handle: handle } = accepted as unknown as { readonly _handle: { readonly fd: number } };
  const fd = duplicateFd(handle.fd);
  accepted.destroy();
  const onread: OnReadOpts = {
    buffer: () => reader.place(),
    callback: (count) => {
      reader.onReceived(count);
      return true;
    },
  };
  const options: SocketConstructorOpts & { readonly onread: OnReadOpts } = {
    fd,
    allowHalfOpen: true,
    readable: true,
    writable: true,
    onread,
  };
  return new Socket(options).setNoDelay(true).setKeepAlive(true);
}

/** The same for a socket that speaks TLS: what was decrypted is copied to where the reader wants it. */
export function receiveDecrypted(secured: TLSSocket, reader: SocketReader): TLSSocket {
  secured.on('data', (chunk: Buffer) => {
    for (let at = 0; at < chunk.length && !secured.destroyed; ) {
      if (secured.isPaused()) {
        secured.unshift(chunk.subarray(at));
        return;
      }
      const place = reader.place();
      const count = Math.min(place.length, chunk.length - at);
      place.set(chunk.subarray(at, at + count));
      at += count;
      reader.onReceived(count);
    }
  });
  return secured;
}
