/** The three forms of a date in HTTP (RFC 9110, 5.6.7): the one that is sent, and the two that are understood. */
const DATE = /^\w+, (\d\d)[ -]\w{3}[ -](?:\d\d)?\d\d \d\d:\d\d:\d\d GMT$|^\w{3} \w{3} ([ \d]\d) \d\d:\d\d:\d\d \d{4}$/

/**
 * `Retry-After` in milliseconds, of both forms. A date is measured from the response's `Date`, since a client's clock may
 * be wrong. `undefined`: it says nothing.
 */
export function retryAfter(value: string | null, now: number, date?: string | null): number | undefined {
  const text = (value ?? '').trim()
  if (/^\d+$/.test(text)) return Number.isSafeInteger(+text * 1000) ? +text * 1000 : undefined
  const at = httpDate(text)
  return at && Math.max(0, at - (httpDate(date ?? '') ?? now))
}

function httpDate(text: string): number | undefined {
  const found = DATE.exec(text)
  // The form without a zone is of the same one.
  const at = found ? new Date(found[1] ? text : `${text} GMT`) : undefined
  // A day that is not in the month would be taken for one of the next.
  return at?.getUTCDate() === Number(found?.[1] ?? found?.[2]) ? at!.getTime() : undefined
}
