/**
 * Reads a device's messages and answers each within the driver's time. One after the other: the next step
 * starts when the one before has been answered.
 */
import { errorMessage } from '../../base/errors.js';
import type { Logger } from '../../base/log.js';
import type { VduseRequest } from '../../native/vduse-abi.js';
import type { VduseDeviceFile } from './device-file.js';

export interface MessageAnswer {
  readonly ok: boolean;
  readonly queueState?: { index: number; availIndex: number };
}

export interface MessageLoopContext {
  readonly file: VduseDeviceFile;
  readonly logger: Logger;
  /** Handles a message; a rejection answers FAILED. */
  readonly handle: (request: VduseRequest) => Promise<MessageAnswer>;
  /** The device can't be read any more. */
  readonly onFailure: (error: unknown) => void;
}

export class MessageLoop {
  readonly #context: MessageLoopContext;
  #tail: Promise<void> = Promise.resolve();
  #failed = false;

  constructor(context: MessageLoopContext) {
    this.#context = context;
  }

  /** Takes the messages that are there; call it when the device is readable. */
  receive(): void {
    try {
      for (;;) {
        const request = this.#failed ? undefined : this.#context.file.readRequest();
        if (request === undefined) {
          return;
        }
        this.#tail = this.#tail.then(() => this.#answer(request));
      }
    } catch (error) {
      this.#failed = true;
      this.#context.onFailure(error);
    }
  }

  /** Does something behind the messages taken so far, and before the next. */
  between(work: () => Promise<void>): void {
    const { file, logger } = this.#context;
    this.#tail = this.#tail.then(work).catch((error: unknown) => {
      logger.error({ device: file.name }, `'${file.name}': ${errorMessage(error)}`);
    });
  }

  /** Resolves when every message taken so far has been answered. */
  async settled(): Promise<void> {
    await this.#tail;
  }

  async #answer(request: VduseRequest): Promise<void> {
    const { file, logger, handle } = this.#context;
    logger.debug({ device: file.name, request }, 'VDUSE message');
    let answer: MessageAnswer;
    try {
      answer = await handle(request);
    } catch (error) {
      logger.error(
        { device: file.name, request: request.type },
        `'${file.name}': message ${request.type} failed: ${errorMessage(error)}`,
      );
      answer = { ok: false };
    }
    if (!file.respond({ id: request.id, ...answer })) {
      logger.warn({ device: file.name, request: request.type }, 'an answer came too late for the driver');
    }
  }
}
