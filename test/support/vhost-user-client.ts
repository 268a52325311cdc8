/** Front-ends for tests of vhost-user: one that behaves, with requests, and one that sends whatever bytes it likes. */
import { connectUnix, sendMessage } from '../../src/native/unix-socket.js';
import { encodeMessage, MessageStream } from '../../src/transport/vhost-user/message-stream.js';
import { BlkClient } from './blk-client.js';
import { FrontEnd, type FrontEndOptions } from './front-end.js';
import { RemoteDevice, type RemoteOptions } from './vhost-user-setup.js';
import { within } from './within.js';

export interface Remote {
  readonly device: RemoteDevice;
  readonly frontEnd: FrontEnd;
  readonly client: BlkClient;
  /** Stops the rings and goes. */
  close(): Promise<void>;
  /** Goes without a word. */
  vanish(): void;
}

/** Connects, shares memory and starts the rings. */
export async function startRemote(
  path: string,
  options: RemoteOptions & FrontEndOptions = {},
): Promise<Remote> {
  const device = await RemoteDevice.connect(path, options);
  const frontEnd = new FrontEnd(device, { shared: true, dataBytes: 4 << 20, ...options });
  device.memory = frontEnd.memory;
  try {
    await frontEnd.activate();
  } catch (error) {
    device.frontend.close();
    throw error;
  }
  return {
    device,
    frontEnd,
    client: new BlkClient(frontEnd),
    async close() {
      await frontEnd.close();
      device.frontend.close();
    },
    vanish() {
      device.frontend.close();
      device.forget();
      void frontEnd.close();
    },
  };
}

export interface RawMessage {
  readonly request: number;
  readonly payload?: Uint8Array;
  readonly fds?: readonly number[];
  readonly flags?: number;
}

/** A connection without manners. */
export class RawClient {
  readonly #fd: number;
  readonly #stream: MessageStream;

  constructor(path: string) {
    this.#fd = connectUnix(path);
    this.#stream = new MessageStream(this.#fd);
  }

  /** Throws where the back-end has closed already. */
  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): void {
    sendMessage(this.#fd, bytes, fds);
  }

  send(message: RawMessage): void {
    const { request, payload = new Uint8Array(0), fds = [], flags = 1 } = message;
    this.sendBytes(encodeMessage({ request, flags, payload }), fds);
  }

  /** Resolves when the back-end has ended the connection. */
  ended(): Promise<void> {
    return within(10_000, 'the end of the connection', async () => {
      try {
        while ((await this.#stream.next()) !== undefined);
      } catch {
        // It ended in the middle of something, or was reset.
      }
    });
  }

  close(): void {
    this.#stream.close();
  }
}
