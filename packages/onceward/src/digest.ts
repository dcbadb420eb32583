import { hex } from './key.js'
import { sha256 } from './sha256.js'

/** Up to this size the digest is computed at once: no other task runs before a `keepalive` request starts. */
const INLINE_BYTES_MAX = 1 << 16

export const encode = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text)

/** Returns SHA-256 in lower-case hex. A page on plain `http://` has no `crypto.subtle`. */
export function digest(data: Uint8Array<ArrayBuffer>): string | Promise<string> {
  const subtle = globalThis.crypto?.subtle
  if (data.length <= INLINE_BYTES_MAX || !subtle) return sha256(data)
  return subtle.digest('SHA-256', data).then((it) => hex(new Uint8Array(it)))
}
