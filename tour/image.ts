import { closeSync, ftruncateSync, openSync } from 'node:fs';

/** Makes a sparse image. */
export function createImage(path: string, bytes: number): void {
  const fd = openSync(path, 'wx');
  try {
    ftruncateSync(fd, bytes);
  } finally {
    closeSync(fd);
  }
}
