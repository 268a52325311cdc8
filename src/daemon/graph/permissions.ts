/**
 * Who may do what to a node that several use, by QEMU's rules: every user says what it does to the node and what
 * it bears from the others. Two users conflict when one does what the other does not bear.
 */

/** Bits; the values are QEMU's (BLK_PERM_*). */
export const Permission = { CONSISTENT_READ: 1, WRITE: 2, RESIZE: 8 } as const;

export const allPermissions = Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE;

export interface Permissions {
  readonly uses: number;
  /** What the user bears from others. */
  readonly shares: number;
}

const names: readonly (readonly [number, string])[] = [
  [Permission.CONSISTENT_READ, 'consistent read'],
  [Permission.WRITE, 'write'],
  [Permission.RESIZE, 'resize'],
];

export function permissionNames(bits: number): string {
  return names
    .filter(([bit]) => (bits & bit) !== 0)
    .map(([, name]) => name)
    .join(', ');
}
