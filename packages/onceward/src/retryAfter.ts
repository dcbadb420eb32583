/**
 * `Retry-After` in milliseconds, of both forms. A date is measured from the response's `Date`, since a client's clock may
 * be wrong. `undefined`: it says nothing.
 */
export function retryAfter(value: string | null, now: number, date?: string | null): number | undefined {
  const text = (value ?? '').trim()
  // More digits than any time has are nothing that could be waited for.
  if (/^\d{1,12}$/.test(text)) return +text * 1000
  const at = httpDate(text)
  return at && Math.max(0, at - (httpDate(date ?? '') ?? now))
}

/** The three forms of RFC 9110, 5.6.7: all begin with the name of a day, and one leaves out the zone, which is the same. */
function httpDate(text: string): number | undefined {
  const day = /^\w+,? .*?(\d+)/.exec(text)?.[1]
  const at = new Date(/GMT$/.test(text) ? text : `${text} GMT`)
  // A day that is not in the month would be taken for one of the next.
  return at.getUTCDate() === +day! ? at.getTime() : undefined
}
