/** Where keys come from. */

import { canonical } from './canonical.js'
import { sha256 } from './sha256.js'

export const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')

/** A UUIDv7: random, and sorted by when it was made. Works on plain `http://` too, where there is no `randomUUID`. */
export function newKey(): string {
  const random = hex(crypto.getRandomValues(new Uint8Array(9)))
  const time = Date.now().toString(16).padStart(12, '0')
  // The 7 is the version, the 8 the variant.
  return `${time}7${random}`.replace(/(.{8})(.{4})(.{4})(.{3})/, '$1-$2-$3-8$4-')
}

/**
 * The key of this user, intent and payload, the same wherever and whenever it is made: for programs that cannot keep one.
 * Throws a `CanonicalError` where two payloads could become one text.
 */
export function derivedKey(user: string, intent: string, payload: unknown): string {
  return `d1-${sha256(`["onceward-1",${canonical(user)},${canonical(intent)},${canonical(payload)}]`)}`
}

const NAMES = /^(?:nonce|random|rand|salt|uuid|guid|now|time(?:stamp)?|date|ts|(?:created|updated|sent|requested|client)_?(?:at|on|time)|request_?id)$/i
const VALUES = /^(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d|[\da-f]{8}-[\da-f]{4}-[1-8][\da-f]{3}-)/i

/** The members that look like a time or a random value: with such a one inside, each retry derives another key. */
export function suspects(payload: unknown, path = ''): string[] {
  if (payload instanceof Date) return [path]
  if (typeof payload === 'string') return VALUES.test(payload) ? [path] : []
  if (typeof payload !== 'object' || payload === null) return []
  return Object.entries(payload).flatMap(([name, value]) => {
    const at = path ? `${path}.${name}` : name
    return NAMES.test(name) && (typeof value === 'string' || typeof value === 'number') ? [at] : suspects(value, at)
  })
}
