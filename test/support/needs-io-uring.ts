/** Options of tests with requests that stay in flight: system calls end before their submission returns. */
import { chooseRing } from '../../src/native/open-ring.js';

export const needsIoUring: { readonly skip: string | false } = {
  skip: chooseRing().kind === 'io_uring' ? false : 'nothing stays in flight without io_uring',
};
