/** Arguments as they may be said again, in errors, reports and logs: others read journals. */
import { VduseError } from '../../base/errors.js';

/** The options of a secret that are none themselves. Whatever else stands beside them may be a part of it. */
const openKey = /^(?:qom-type|id|format|file|keyid|iv)=/;

/** What may be repeated of an argument: not the data of a secret, no cookie, and not who asks for a URL. */
export function withoutSecrets(text: string): string {
  const shown = /^(?:qom-type=)?secret,/.test(text) ? withoutSecretObject(text) : text;
  return (
    shown
      .replace(/((?:^|,|\.)(?:data|cookie)=)(?:[^,]|,,)*/g, '$1...')
      .replace(/("(?:data|cookie)"\s*:\s*)"(?:[^"\\]|\\.)*"?/g, '$1"..."')
      // Where a text is expected and something else stands, it is not told how far that goes.
      .replace(/("data"\s*:\s*)[^"\s].*/gs, '$1...')
      // JSON may write a slash with a backslash.
      .replace(/(:\\?\/\\?\/)[^"\s]*@/g, '$1...@')
      // A query may be a ticket; that of an NBD URL names a socket.
      .replace(/((?<!\bnbd(?:\+unix)?):\\?\/\\?\/[^?"\s]*\?)(?:[^,"]|,,)*/g, '$1...')
  );
}

/** A comma that should have been two makes words of their own of the rest of a password. */
function withoutSecretObject(text: string): string {
  const [type, ...words] = text.split(/(?<!,),(?!,)/);
  const dataAt = words.findIndex((word) => word.startsWith('data='));
  const shown = words.map((word, n) => {
    if (openKey.test(word)) {
      return word;
    }
    const mayBeSecret = dataAt >= 0 && n > dataAt;
    return `${mayBeSecret ? '' : word.slice(0, word.indexOf('=') + 1)}...`;
  });
  return [type, ...shown].join(',');
}

/** The same error; a word that it quotes from what is not shown is not shown either. */
export function withoutHidden(error: VduseError, text: string, shown: string): VduseError {
  const isHidden = (word: string): boolean => word !== '' && text.includes(word) && !shown.includes(word);
  const message = error.message.replace(/'([^']*)'/g, (quoted, word: string) =>
    isHidden(word) ? "'...'" : quoted,
  );
  return new VduseError(error.code, message, { cause: error.cause, hint: error.hint });
}
