/** Makes keys. */

import { canonical } from './canonical.js'
import { sha256 } from './sha256.js'

export const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')

/** Makes a UUIDv7: random, and sorted by time. Works on plain `http://` too, where there is no `randomUUID`. */
export function newKey(): string {
  const { crypto } = globalThis
  if (!crypto?.getRandomValues) throw new Error("onceward needs crypto.getRandomValues, which is missing here: import 'react-native-get-random-values' first")
  const random = hex(crypto.getRandomValues(new Uint8Array(9)))
  const time = Date.now().toString(16).padStart(12, '0')
  // The 7 is the version, the 8 the variant.
  return `${time}7${random}`.replace(/(.{8})(.{4})(.{4})(.{3})/, '$1-$2-$3-8$4-')
}

/**
 * Derives the key of this user, intent and payload, the same wherever and whenever it is made: for programs that cannot keep one.
 * Throws a `CanonicalError` where two payloads could become one text.
 */
export function derivedKey(user: string, intent: string, payload: unknown): string {
  return `d1-${sha256(`["onceward-1",${canonical(user)},${canonical(intent)},${canonical(payload)}]`)}`
}

const CSRF = /csrf|xsrf|authenticity_?token|requestverificationtoken/i
export const isCsrfField = (name: string) => CSRF.test(name) || name === '_token'
const NAMES = /^(?:nonce|random|rand|salt|uuid|guid|now|time(?:stamp)?|date|ts|(?:created|updated|sent|requested|client)_?(?:at|on|time)|request_?id)$/i
const VALUES = /^(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d|[\da-f]{8}-[\da-f]{4}-[1-8][\da-f]{3}-)/i

/** Returns the members that look like a time, a random value or a CSRF token: they differ at each send. */
export function findVolatileFields(payload: unknown, path = ''): string[] {
  if (payload instanceof Date) return [path]
  if (typeof payload === 'string') return VALUES.test(payload) ? [path] : []
  if (typeof payload !== 'object' || payload === null) return []
  return Object.entries(payload).flatMap(([name, value]) => {
    const at = path ? `${path}.${name}` : name
    return (NAMES.test(name) || isCsrfField(name)) && (typeof value === 'string' || typeof value === 'number') ? [at] : findVolatileFields(value, at)
  })
}
