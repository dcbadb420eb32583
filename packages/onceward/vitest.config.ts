import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Real browsers and gateways on a machine that may be busy: a test ends by what it awaits.
    testTimeout: 600_000,
    hookTimeout: 120_000,
    pool: 'forks',
    maxWorkers: 2,
    reporters: process.env['ONCEWARD_TALLY'] ? ['default', './test/support/tally.ts'] : ['default'],
  },
})
