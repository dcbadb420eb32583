/** An outcome as it goes from one tab to another. */

import { OncewardError } from './errors.js'
import type { ErrorName } from './retry.js'
import type { Executed, Problem } from './wire.js'

export type Shared =
  | { readonly url: string; readonly status: number; readonly headers: [string, string][]; readonly body: ArrayBuffer }
  | { readonly error: ErrorName; readonly executed: Executed; readonly intent: string; readonly problem: Problem | undefined }

/** Servers keep no larger answers, unless they are told to. */
const BODY_BYTES_MAX = 4 << 20

/**
 * Reads an answer to its end while leaving it unread: an answer that is cut in its middle is no answer. Rejects if it is
 * cut; `undefined` if it may have no end, or is too large to be held.
 */
export async function whole(response: Response, isKept: boolean): Promise<Shared | undefined> {
  const { url, status, headers } = response
  const length = headers.get('content-length')
  if (length === null ? !isKept : Number(length) > BODY_BYTES_MAX) return undefined
  return { url, status, headers: [...headers], body: await response.clone().arrayBuffer() }
}

export function sharedError(error: unknown): Shared | undefined {
  if (!(error instanceof OncewardError)) return undefined
  const { name, executed, intent, problem } = error
  return { error: name as ErrorName, executed, intent, problem }
}
