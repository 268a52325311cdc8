/** Does on the host what a machine's scenario asks for (test/lab/guest/host-deeds.ts). */
import { hostMark } from './guest/host-deeds.js';

export type Deeds = Readonly<Record<string, (argument: string) => unknown>>;

export class HostDeeds {
  /** What went wrong; a scenario that waits for the deed fails for its own reasons. */
  readonly failures: unknown[] = [];
  readonly #deeds: Deeds;
  #turn: Promise<unknown> = Promise.resolve();
  #rest = '';

  constructor(deeds: Deeds) {
    this.#deeds = deeds;
  }

  /** Takes the machine's output as it comes. Deeds are done one after the other. */
  readonly onOutput = (chunk: Buffer): void => {
    const lines = (this.#rest + chunk.toString()).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines.filter((one) => one.startsWith(hostMark))) {
      const [deed, argument = ''] = line.slice(hostMark.length).split(' ');
      this.#turn = this.#turn
        .then(() => this.#deeds[deed](argument))
        .catch((error: unknown) => this.failures.push(error));
    }
  };
}
