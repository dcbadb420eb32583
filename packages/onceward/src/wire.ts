/** Header names and words of the contract on the wire. */

export const KEY = 'Idempotency-Key'
export const OUTCOME = 'Idempotency-Outcome'
export const FIRST_SENT = 'Idempotency-First-Sent'

/** The value of `Idempotency-Outcome`. */
export type Outcome =
  | 'stored' | 'replayed' | 'released' | 'not-stored' | 'in-flight' | 'mismatch' | 'unknown' | 'expired' | 'rejected' | 'reconciled'

/** Whether the key's operation was executed, in any attempt. */
export type Executed = 'yes' | 'no' | 'unknown'

/** The server's refusal: the members of its `application/problem+json`. */
export interface Problem {
  readonly type?: string
  readonly title?: string
  readonly status?: number
  readonly detail?: string
  readonly code?: string
  /** Identifies the operation for support; no secret. */
  readonly instance?: string
  readonly executed?: Executed
  readonly retry?: 'same-key' | 'wait' | 'new-key' | 'stop'
  readonly first_status?: number
  readonly first_location?: string
}

/** Parses an outcome; one that is not known here is none. */
export function outcomeOf(value: string | null | undefined): Outcome | undefined {
  const known = /^(stored|replayed|released|not-stored|in-flight|mismatch|unknown|expired|rejected|reconciled)$/
  return known.test(value!) ? (value as Outcome) : undefined
}

/** Parses the value of a key header, bare or quoted; `undefined`: it is malformed. */
export function keyOf(value: string): string | undefined {
  value = value.replace(/^[ \t]+|[ \t]+$/g, '')
  let key = value
  if (value.startsWith('"')) {
    if (!/^"(?:[!#-[\]-~]|\\["\\])*"$/.test(value)) return undefined
    key = value.slice(1, -1).replace(/\\(["\\])/g, '$1')
  } else if (!/^[!#-+\--:<-[\]-~]*$/.test(value)) return undefined
  return key.length >= 1 && key.length <= 255 ? key : undefined
}
