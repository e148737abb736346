f = type('f\0g', (Exception,), {})
