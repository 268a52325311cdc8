/** Rules that say who may come, as QEMU's authz objects have them: the first that matches decides. */

export type AccessPolicy = 'allow' | 'deny';

export interface AccessRule {
  /** A name, or with `glob` a pattern of names: `*` is any text, `?` any character. */
  readonly match: string;
  readonly policy: AccessPolicy;
  readonly format: 'exact' | 'glob';
}

export interface AccessList {
  readonly rules: readonly AccessRule[];
  /** Of names that no rule matches. */
  readonly policy: AccessPolicy;
}

export function isAllowed({ rules, policy }: AccessList, name: string): boolean {
  const rule = rules.find(({ match, format }) =>
    format === 'glob' ? matchesGlob(match, name) : match === name,
  );
  return (rule?.policy ?? policy) === 'allow';
}

/** Goes back to the last `*` only: what an earlier one could take more of, the last can take too. */
export function matchesGlob(pattern: string, text: string): boolean {
  // By characters, which are code points.
  const wanted = [...pattern];
  const given = [...text];
  let at = 0;
  let star = -1;
  let taken = 0;
  for (let n = 0; n < given.length; ) {
    if (wanted[at] === '*') {
      star = at;
      taken = n;
      at += 1;
    } else if (at < wanted.length && (wanted[at] === '?' || wanted[at] === given[n])) {
      at += 1;
      n += 1;
    } else if (star >= 0) {
      taken += 1;
      n = taken;
      at = star + 1;
    } else {
      return false;
    }
  }
  return wanted.slice(at).every((character) => character === '*');
}
