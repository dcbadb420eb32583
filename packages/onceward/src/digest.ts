import { hex } from './key.js'

export const encode = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text)

/** SHA-256 in lower-case hex. A page on plain `http://` has no `crypto.subtle`, and fetches our own. */
export async function digest(data: Uint8Array<ArrayBuffer>): Promise<string> {
  const { subtle } = crypto
  return subtle ? hex(new Uint8Array(await subtle.digest('SHA-256', data))) : (await import('./sha256.js')).sha256(data)
}
