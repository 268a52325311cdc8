/** Sizes as people write and read them. Units are powers of 1024, as QEMU counts them. */
import { VduseError } from '../../base/errors.js';

/** Virtio 5.2.4: a disk has whole sectors. */
export const sectorBytes = 512;

const units = ['', 'K', 'M', 'G', 'T', 'P'] as const;

const syntaxHint = 'Write bytes, or a number and a unit of K, M, G, T (1 K is 1024): 512M, 10G, 1.5T.';

function refuse(text: string, why: string): never {
  throw new VduseError('INVALID_ARGUMENT', `size '${text}': ${why}`, { hint: syntaxHint });
}

/**
 * Bytes of `10G`, `10GiB`, `1.5T`, `1048576`; a part of a byte counts as one. `10GB` is refused: some
 * programs mean 10^10 by it. Throws INVALID_ARGUMENT.
 */
export function parseSize(text: string): number {
  const match = /^(\d{1,18})(?:\.(\d{1,12}))?([KMGTP]?)(i?)(B?)$/i.exec(text.trim());
  if (match === null) {
    refuse(text, 'it is no size');
  }
  const [, whole, fraction = '', prefix, binary, byte] = match;
  const exponent = units.indexOf(prefix.toUpperCase() as (typeof units)[number]);
  if (exponent === 0 && (binary !== '' || fraction !== '')) {
    refuse(text, fraction === '' ? 'it is no size' : 'there are no parts of bytes');
  }
  if (exponent > 0 && byte !== '' && binary === '') {
    refuse(text, `the unit '${prefix}B' means different things to different programs`);
  }
  const scale = 10n ** BigInt(fraction.length);
  const scaled = BigInt(whole + fraction) * 1024n ** BigInt(exponent);
  const bytes = (scaled + scale - 1n) / scale;
  if (bytes > BigInt(Number.MAX_SAFE_INTEGER)) {
    refuse(text, 'it is larger than any disk can be');
  }
  return Number(bytes);
}

/** The next size that has whole sectors. */
export function roundUpToSectors(bytes: number): number {
  return Math.ceil(bytes / sectorBytes) * sectorBytes;
}

/** For people: `512 B`, `1.5 GiB`. Three digits or four, so that columns and live lines stay narrow. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  // 1023.95 would be shown as 1024.0.
  while (value >= 1023.95 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || Number.isInteger(value) || value >= 100 ? 0 : 1;
  return `${value.toFixed(digits)} ${units[unit]}${unit === 0 ? '' : 'i'}B`;
}

/** `950`, `12.3k`, `4.5M`: counts, in thousands. */
export function formatCount(count: number): string {
  const steps = ['', 'k', 'M', 'G'];
  let value = count;
  let step = 0;
  while (value >= 999.5 && step < steps.length - 1) {
    value /= 1000;
    step++;
  }
  return `${value.toFixed(step === 0 || value >= 99.95 ? 0 : 1)}${steps[step]}`;
}

/** `5 s`, `2 min 5 s`, `3 h 20 min`. */
export function formatDuration(milliseconds: number): string {
  const seconds = Math.floor(milliseconds / 1000);
  if (seconds < 60) {
    return `${seconds} s`;
  }
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes} min ${seconds % 60} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** What something took: `32 ms`, `0.3 s`, `42.1 s`, `2 min 5 s`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 0.0995) {
    return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  }
  return seconds < 60 ? `${seconds.toFixed(1)} s` : formatDuration(seconds * 1000);
}

/** `3.2us`, `71us`, `2.1ms`, `1.4s`. */
export function formatUs(us: number): string {
  if (us < 1000) {
    return `${us.toFixed(us < 10 ? 1 : 0)}us`;
  }
  return us < 1e6 ? `${(us / 1000).toFixed(us < 10_000 ? 1 : 0)}ms` : `${(us / 1e6).toFixed(1)}s`;
}
