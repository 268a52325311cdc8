/** The socket on which the back-end speaks unasked ("Back-end communication"). */
import { closeFd } from '../../native/fd.js';
import { sendMessage } from '../../native/unix-socket.js';
import { encodeMessage } from './message-stream.js';
import { BackendRequest, MessageFlag } from './protocol.js';

export class BackendChannel {
  readonly #fd: number;

  /** Takes the descriptor over. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * The configuration space is another one. No answer is asked for, so none is waited for. Throws where it does not
   * go out: then the front-end has let its messages pile up, or the descriptor is no socket.
   */
  notifyConfigChange(): void {
    const message = encodeMessage({ request: BackendRequest.CONFIG_CHANGE, flags: MessageFlag.VERSION });
    sendMessage(this.#fd, message);
  }

  close(): void {
    closeFd(this.#fd);
  }
}
