/** Arguments as they may be said again, in errors, reports and logs. */

/** What may be repeated of an argument: not the data of a secret, no cookie, and not who asks for a URL. */
export function withoutSecrets(text: string): string {
  return (
    text
      .replace(/((?:^|,|\.)(?:data|cookie)=)(?:[^,]|,,)*/g, '$1...')
      .replace(/("(?:data|cookie)"\s*:\s*)"(?:[^"\\]|\\.)*"?/g, '$1"..."')
      // JSON may write a slash with a backslash.
      .replace(/(:\\?\/\\?\/)[^"\s]*@/g, '$1...@')
      // A query may be a ticket; that of an NBD URL names a socket.
      .replace(/((?<!\bnbd(?:\+unix)?):\\?\/\\?\/[^?"\s]*\?)(?:[^,"]|,,)*/g, '$1...')
  );
}
